"""A Medical Segmentation Decathlon task, as its ``dataset.json`` describes it (http://medicaldecathlon.com)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rare_lightning.data.voxels import suffix_of
from rare_lightning.errors import UserError


@dataclass(frozen=True)
class Case:
    """One labelled scan.

    Attributes:
        case_id: File name without folder and suffix, for example ``hippocampus_001``, as ``rare predict`` calls it.
        image: Image file, 3D or 4D with channels last.
        label: Label map file.
    """

    case_id: str
    image: Path
    label: Path


@dataclass(frozen=True)
class Task:
    """What a segmentation task consists of.

    Attributes:
        root: Its folder.
        name: Name of the task.
        channels: Image channel names, in file order.
        classes: Class names by label value, background first.
        cases: Labelled cases in order of case id.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    cases: tuple[Case, ...]


def case_id_of(path: Path) -> str:
    """File name without the suffix of an image, nor the number that nnU-Net gives to an only channel."""
    return path.name[: len(path.name) - len(suffix_of(path) or "")].removesuffix("_0000")


def read_task(root: Path | str) -> Task:
    """Read ``root/dataset.json``. Files it names are not opened here; see :func:`~.integrity.check_cases`.

    Raises:
        UserError: If there is no readable ``dataset.json`` with channels, labels and cases, or the label values are
            not 0, 1, 2, ..., or two classes share a name.
    """
    root = Path(root).expanduser()
    path = root / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{path}: not found. data.root must be the folder of one Decathlon task, such as Task04_Hippocampus. "
            "To try without data: rare phantom ROOT"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        channels = content["modality"] if "modality" in content else content["channel_names"]
        labels = content["labels"].items()
        if any(isinstance(value, list) for _, value in labels):
            raise ValueError("'labels' holds regions of several values, where each voxel is to be of one class")
        if all(isinstance(value, int) for _, value in labels):  # nnU-Net's, by name
            labels = [(value, name) for name, value in labels]
        classes = sorted((int(value), str(name)) for value, name in labels)
        cases = [_read_case(root, entry) for entry in content["training"]]
        channel_names = tuple(str(channels[key]) for key in sorted(channels, key=int))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a Decathlon dataset.json ({type(error).__name__}: {error}). It needs 'modality' and 'labels' "
            "that map numbers to names (or 'labels' names to numbers), and 'training', a list of {'image': ..., "
            "'label': ...}, one file each: several channels are a fourth dimension."
        ) from error
    values, names = [value for value, _ in classes], [name for _, name in classes]
    if values != list(range(len(values))) or len(values) < 2:
        renumbered = {str(i): name for i, name in enumerate(names)}
        raise UserError(
            f"{path}: label values {values} are not 0, 1, 2, ... without gaps. Renumber the label maps and "
            f"write 'labels': {json.dumps(renumbered)}"
        )
    check_class_names(names, path)
    if not cases:
        raise UserError(f"{path}: 'training' lists no cases. Labelled cases are needed for training and testing.")
    return Task(
        root=root,
        name=str(content.get("name", root.name)),
        channels=channel_names,
        classes=tuple(names),
        cases=tuple(sorted(cases, key=lambda case: case.case_id)),
    )


def check_class_names(names: Sequence[str], source: Path | str) -> None:
    """Scores are kept by class name, and label maps hold a byte per voxel.

    Raises:
        UserError: If a name is given twice, or there are more than 255.
    """
    if len(names) > 255:
        raise UserError(f"{source}: {len(names)} classes are more than the 255 that a label map can hold here")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"{source}: two classes are called {', '.join(twice)}; give each a name of its own")


def _read_case(root: Path, entry: dict[str, Any]) -> Case:
    if isinstance(entry["image"], list):
        raise ValueError(f"an image of {len(entry['image'])} files")
    image = root / entry["image"]
    return Case(case_id_of(image), image, root / entry["label"])
