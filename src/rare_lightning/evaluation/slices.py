"""One slice per case and level of a test <-> slices.npz, from which a comparison draws its montage."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rare_lightning.errors import UserError
from rare_lightning.evaluation.figures import Slice
from rare_lightning.evaluation.tables import replacing

PARTS = ("level", "spacing", "image", "truth", "prediction", "dice", "aspect")


def write_slices(slices: Mapping[str, Sequence[Slice]], class_names: Sequence[str], path: Path) -> None:
    """Write ``slices.npz``: arrays ``class_names`` and, for each case, ``CASE/image`` and so on, levels first.

    Images are scaled to 0..255 between the slice's extremes. Nothing in the file is pickled.

    Args:
        slices: Case -> slice of each level, all of one shape ``(H, W)``.
        class_names: Background first.
        path: Where to.
    """
    arrays: dict[str, np.ndarray] = {"class_names": np.array(class_names)}
    for case, pieces in slices.items():
        for part in PARTS:
            values = [_scaled(piece.image) if part == "image" else getattr(piece, part) for piece in pieces]
            arrays[f"{case}/{part}"] = np.stack([np.asarray(value) for value in values])
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # any name may be one of its options


def read_slices(path: Path, case: str) -> tuple[list[Slice], list[str]]:
    """Slices of a case, level by level, and the class names.

    Raises:
        UserError: If the file is none that :func:`write_slices` wrote, or does not hold the case.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            class_names = arrays["class_names"].tolist()
            parts = {part: arrays[f"{case}/{part}"] for part in PARTS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: no slices of {case} can be read from it ({error})") from error
    # Plain numbers and text where there is one value per level.
    columns = [values if values.ndim > 1 else values.tolist() for values in parts.values()]
    return [Slice(*values) for values in zip(*columns, strict=True)], class_names


def _scaled(image: np.ndarray) -> np.ndarray:
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
