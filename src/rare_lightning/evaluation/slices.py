"""One slice per case and level; those of a test <-> slices.npz, from which a comparison draws its montage."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from rare_lightning.data.geometry import format_spacing
from rare_lightning.errors import UserError
from rare_lightning.evaluation.tables import mean_defined
from rare_lightning.files import replacing
from rare_lightning.metrics.scores import dice

PARTS = ("level", "spacing", "image", "truth", "prediction", "dice", "aspect")


@dataclass(frozen=True)
class Slice:
    """What the montage shows of one level of one case: a slice of the base grid through most foreground.

    Attributes:
        level: The level.
        spacing: Its spacing, as text.
        image: ``(H, W)`` scan as the network got it, block by block.
        truth: ``(H, W)`` class indices of the full-resolution label.
        prediction: ``(H, W)`` class indices of the answer on the base grid.
        dice: Mean ``fine`` Dice of the case at this level.
        aspect: Height of a pixel over its width, in mm.
    """

    level: int
    spacing: str
    image: np.ndarray
    truth: np.ndarray
    prediction: np.ndarray
    dice: float
    aspect: float


def cut_slice(
    level: int,
    spacing_mm: Sequence[float],
    image: Tensor,
    truth: Tensor,
    prediction: Tensor,
    label_spacing: Sequence[float],
) -> Slice:
    """The axial slice that holds most foreground of the truth; the middle one if there is none.

    Args:
        level: The level.
        spacing_mm: Its spacing.
        image: ``(D_l, H_l, W_l)`` on the level grid.
        truth: ``(D, H, W)`` class indices on the label's grid.
        prediction: The same of the answer.
        label_spacing: Of that grid, in mm.
    """
    foreground = (truth > 0).sum((0, 1))
    index = int(foreground.argmax()) if foreground.any() else truth.shape[2] // 2
    stride = [round(mm / base) for mm, base in zip(spacing_mm, label_spacing, strict=True)]
    plane = image[:, :, index // stride[2]]
    shown = plane.repeat_interleave(stride[0], 0).repeat_interleave(stride[1], 1)
    present = set(np.union1d(truth.cpu().numpy(), prediction.cpu().numpy()).tolist()) - {0}
    return Slice(
        level=level,
        spacing=format_spacing(spacing_mm),
        image=shown[: truth.shape[0], : truth.shape[1]].float().cpu().numpy(),
        truth=truth[:, :, index].cpu().numpy().astype(np.uint8),
        prediction=prediction[:, :, index].cpu().numpy().astype(np.uint8),
        dice=mean_defined(dice(prediction == value, truth == value) for value in sorted(present)),
        aspect=label_spacing[1] / label_spacing[0],
    )


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
            values = [scaled_to_bytes(piece.image) if part == "image" else getattr(piece, part) for piece in pieces]
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


def scaled_to_bytes(image: np.ndarray) -> np.ndarray:
    """0..255 between the extremes of an image."""
    low, high = float(image.min()), float(image.max())
    return np.round((image - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
