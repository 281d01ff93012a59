"""A Medical Segmentation Decathlon task, as its ``dataset.json`` describes it (http://medicaldecathlon.com)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from pathlib import Path
from typing import Any

from rare_lightning.data.voxels import SUFFIXES, case_id_of, channel_stem, image_name, suffix_of
from rare_lightning.errors import UserError


@dataclass(frozen=True)
class Case:
    """One labelled scan.

    Attributes:
        case_id: As :func:`~.voxels.case_id_of` calls it, for example ``hippocampus_001``.
        images: One file, 3D or 4D with channels last, or one for each channel in the task's order.
        label: Label map file.
    """

    case_id: str
    images: tuple[Path, ...]
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


def read_task(root: Path | str) -> Task:
    """Read ``root/dataset.json``, Decathlon's or nnU-Net's.

    Cases are those listed under ``training``, or what lies in ``imagesTr`` and ``labelsTr`` where nothing is listed
    (https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md). No image is opened here, and some
    may be missing; see :func:`~.integrity.check_cases`.

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
            if "ignore" in content["labels"]:
                raise ValueError("'labels' holds 'ignore', where each voxel is to be of one class")
            labels = [(value, name) for name, value in labels]
        classes = sorted((int(value), str(name)) for value, name in labels)
        channel_names = tuple(str(channels[key]) for key in sorted(channels, key=int))
        if "training" in content or "file_ending" not in content:
            cases = [_listed(root, entry, len(channel_names)) for entry in content["training"]]
        else:
            cases = _found(root, content["file_ending"], len(channel_names))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not a Decathlon dataset.json ({type(error).__name__}: {error}). It needs 'modality' and 'labels' "
            "that map numbers to names (or 'labels' names to numbers), and 'training', a list of {'image': ..., "
            "'label': ...} with a file of all channels or a list of one file each; or nnU-Net's 'channel_names', "
            "'labels' and 'file_ending'."
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
        raise UserError(
            f"{path}: no cases under 'training', or in imagesTr and labelsTr. Labelled cases are needed for training "
            "and testing."
        )
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


def _listed(root: Path, entry: dict[str, Any], channels: int) -> Case:
    if isinstance(entry["image"], list):
        images = tuple(root / image for image in entry["image"])
        if not images:
            raise ValueError(f"no image for {entry['label']}")
    else:
        images = (root / entry["image"],)
        numbered = _channel_files(images[0], channels)
        if numbered[0].is_file() and not images[0].is_file():  # nnU-Net 1 lists NAME for NAME_0000, NAME_0001, ...
            images = numbered
    return Case(case_id_of(images), images, root / entry["label"])


def _found(root: Path, ending: str, channels: int) -> list[Case]:
    """Cases with an image or a label: the check says which of them lack the other."""
    if suffix_of(Path(f"a{ending}")) != ending.lower():
        raise ValueError(f"'file_ending' is {ending}, where {', '.join(SUFFIXES)} are read")
    names = {image_name(path) for path in (root / "labelsTr").glob(f"[!.]*{ending}")}
    names |= {channel_stem(path) for path in (root / "imagesTr").glob(f"[!.]*{ending}")}
    cases = []
    for name in names:
        images = _channel_files(root / "imagesTr" / f"{name}{ending}", channels)
        cases.append(Case(case_id_of(images), images, root / "labelsTr" / f"{name}{ending}"))
    return cases


def _channel_files(path: Path, channels: int) -> tuple[Path, ...]:
    """``NAME_0000``, ``NAME_0001``, ... of NAME: those that are to be there, and what else is."""
    name = image_name(path)
    numbered = ((i, path.with_name(f"{name}_{i:04d}{path.name[len(name) :]}")) for i in count())
    return tuple(file for _, file in takewhile(lambda each: each[0] < channels or each[1].is_file(), numbered))
