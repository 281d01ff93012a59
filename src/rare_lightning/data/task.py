"""A task of the Medical Segmentation Decathlon or of nnU-Net, as its ``dataset.json`` describes it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from rare_lightning.data.geometry import Geometry, read_geometry
from rare_lightning.data.voxels import SUFFIXES, case_id_of, channel_stem, image_name, suffix_of, told_apart
from rare_lightning.errors import UserError

Regions = Mapping[str, Sequence[int]]
"""What is scored: name -> values of the label map that belong to it. They may overlap."""


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

    @cached_property
    def geometry(self) -> Geometry:
        """Of the first image, from its header, which is read once.

        Raises:
            UserError: If the header cannot be read.
        """
        return read_geometry(str(self.images[0]))


@dataclass(frozen=True)
class Task:
    """What a segmentation task consists of.

    Attributes:
        root: Its folder.
        name: Name of the task.
        channels: Image channel names, in file order.
        classes: Class names by label value, background first.
        regions: What is scored: nnU-Net's regions, or else each foreground class alone.
        cases: Labelled cases in order of case id.
    """

    root: Path
    name: str
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    regions: Regions
    cases: tuple[Case, ...]


def read_task(root: Path | str) -> Task:
    """Read ``root/dataset.json``, the Decathlon's (http://medicaldecathlon.com) or nnU-Net's.

    Cases are those listed under ``training``, or nnU-Net's ``dataset``, or what lies in ``imagesTr`` and ``labelsTr``
    (https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md). No image is opened here, and some
    may be missing; see :func:`~.integrity.check_cases`.

    Raises:
        UserError: If there is no readable ``dataset.json`` with channels, labels and cases, or the label values are
            not 0, 1, 2, ..., or two classes share a name, or a region holds other values, or files in ``imagesTr`` and
            ``labelsTr`` belong to no case.
    """
    root = Path(root).expanduser()
    if root.name == "dataset.json" and root.is_file():
        raise UserError(f"{root}: give its folder, {root.parent}")
    path = root / "dataset.json"
    if not path.is_file():
        raise UserError(
            f"{path}: not found. data.root must be the folder of one task of the Decathlon or of nnU-Net, such as "
            "Task04_Hippocampus. To try without data: rare phantom ROOT"
        )
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        channels = content["modality"] if "modality" in content else content["channel_names"]
        classes, regions = _classes_and_regions(content["labels"], path)
        channel_names = tuple(str(channels[key]) for key in sorted(channels, key=int))
        if sorted(map(int, channels)) != list(range(len(channels))) or not channels:
            raise ValueError(
                f"channels are numbered {', '.join(channels) or 'not at all'}, and not from 0 without gaps"
            )
        if isinstance(content.get("dataset"), dict):
            entries = [{"image": entry["images"], "label": entry["label"]} for entry in content["dataset"].values()]
        else:
            if "channel_names" in content and not {"training", "file_ending"} & content.keys():
                raise UserError(f"""{path}: names no 'file_ending', such as ".nii.gz", which nnU-Net's need""")
            entries = content.get("training") or ([] if "file_ending" in content else content["training"])
        cases = [_listed(root, entry, len(channel_names)) for entry in entries]
        if not entries and "file_ending" in content:
            cases = _found(root, content["file_ending"], len(channel_names), content.get("numTraining"))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is no JSON ({error})") from error
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UserError(
            f"{path}: not a dataset.json of the Decathlon or of nnU-Net ({type(error).__name__}: {error}). It needs "
            "'modality' and 'labels' that map numbers to names (or 'labels' names to numbers), and 'training', a list "
            "of {'image': ..., 'label': ...} with a file of all channels or a list of one file each; or nnU-Net's "
            "'channel_names', 'labels' and 'file_ending'."
        ) from error
    case_ids = told_apart([case.case_id for case in cases], [case.images[0] for case in cases])
    cases = [replace(case, case_id=case_id) for case, case_id in zip(cases, case_ids, strict=True)]
    values, names = [value for value, _ in classes], [name for _, name in classes]
    if values and 0 not in values:
        raise UserError(
            f"""{path}: 'labels' names no background. Add "0": "background", or "background": 0 as nnU-Net has it"""
        )
    if values != list(range(len(values))) or len(values) < 2:
        renumbered = {str(i): name for i, name in enumerate(names)}
        raise UserError(
            f"{path}: label values {values} are not 0, 1, 2, ... without gaps. Renumber the label maps and "
            f"write 'labels': {json.dumps(renumbered)}"
        )
    check_class_names(names, path)
    regions = regions or each_class(names)
    check_regions(regions, names, path)
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
        regions=regions,
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


def each_class(names: Sequence[str]) -> Regions:
    """Each foreground class alone as a region, of class names with the background first."""
    return {name: (value,) for value, name in enumerate(names) if value > 0}


def regions_of(task: Task, given: Regions | None) -> Regions:
    """What is scored of a task: what is given, or the task's own.

    Raises:
        UserError: As of :func:`check_regions`.
    """
    if given is None:
        return task.regions
    check_regions(given, task.classes, "data.regions")
    return given


def check_regions(regions: Regions, names: Sequence[str], source: Path | str) -> None:
    """Refuse regions that could not be scored.

    Args:
        regions: Names and label values.
        names: Of the classes, background first.
        source: Of the regions, for the message.

    Raises:
        UserError: If there is none, or one holds no value, or others than those of the foreground classes.
    """
    wrong = [name for name, values in regions.items() if not values or not {*values} <= {*range(1, len(names))}]
    if wrong or not regions:
        raise UserError(
            f"{source}: regions must be lists of label values from 1 to {len(names) - 1}: "
            f"{', '.join(f'{name} is {[*regions[name]]}' for name in wrong) or 'there is none'}"
        )


def _classes_and_regions(labels: dict[str, Any], path: Path) -> tuple[list[tuple[int, str]], Regions]:
    """Label values with their names, and nnU-Net's regions, such as ``"whole tumor": [1, 2, 3]``, if there are any.

    With regions, each value is a class of its own to the network, called as the region that holds it alone, or
    ``label VALUE``.
    """
    if not all(isinstance(value, int | list) for value in labels.values()):  # the Decathlon's, by value
        return sorted((int(value), str(name)) for value, name in labels.items()), {}
    if "ignore" in labels:
        raise UserError(
            f"{path}: 'labels' holds 'ignore', where each voxel must be of one class. Write label maps without it"
        )
    if all(isinstance(value, int) for value in labels.values()):
        return sorted((value, name) for name, value in labels.items()), {}
    values_of = {name: value if isinstance(value, list) else [value] for name, value in labels.items()}
    regions = {name: tuple(map(int, values)) for name, values in values_of.items() if values != [0]}
    names = {value: f"label {value}" for value in chain.from_iterable(regions.values())}
    names |= {values[0]: name for name, values in values_of.items() if len(values) == 1}
    return sorted(names.items()), regions


def _listed(root: Path, entry: Any, channels: int) -> Case:
    image, label = entry["image"], entry["label"]
    names = image if isinstance(image, list) else [image]
    if not names or not all(isinstance(name, str) and name for name in [*names, label]):
        raise ValueError(f"{json.dumps(entry)[:200]} does not name its files")
    images = tuple(root / name for name in names)
    if image is names:
        return Case(case_id_of(images), images, root / label)
    numbered = _channel_files(images[0], channels)
    if not images[0].is_file() and any(file.is_file() for file in numbered):
        images = numbered  # nnU-Net 1 lists NAME for NAME_0000, NAME_0001, ...
    # With a label of the same name, NAME_0000 is the first of many cases, and no channel.
    own_name = image_name(images[0]) == image_name(root / label)
    return Case(image_name(images[0]) if own_name else case_id_of(images), images, root / label)


def _found(root: Path, ending: str, channels: int, count: int | None) -> list[Case]:
    """Cases with an image or a label: the check says which of them lack the other, or a channel."""
    if ending.lower() not in SUFFIXES:
        raise ValueError(f"'file_ending' is {ending}, where {', '.join(SUFFIXES)} are read")
    images, labels = (
        sorted(path for path in folder.glob("[!.]*") if suffix_of(path))
        for folder in (root / "imagesTr", root / "labelsTr")
    )
    by_name = {image_name(label): set(_channel_files(root / "imagesTr" / label.name, channels)) for label in labels}
    strangers = [f"{path} does not end in {ending}" for path in (*images, *labels) if not path.name.endswith(ending)]
    for image in images:
        name = channel_stem(image)
        if name == image_name(image) or image_name(image) in by_name:
            strangers.append(f"{image} has no channel number: call it {image_name(image)}_0000{ending}")
        by_name.setdefault(name, set(_channel_files(image.with_name(f"{name}{ending}"), channels))).add(image)
    if strangers:
        listing = "\n  ".join(strangers)
        numbered = [[channel_stem(path) != image_name(path) for path in paths] for paths in (images, labels)]
        if labels and all(numbered[1]) and not any(numbered[0]):
            raise UserError(f"{root}: labelsTr holds files of channels, and imagesTr none: are they each other's?")
        raise UserError(f"{root}: {len(strangers)} file(s) belong to no case. Rename or remove them:\n  {listing}")
    if isinstance(count, int) and count != len(by_name):
        raise UserError(
            f"{root}: dataset.json says {count} cases ('numTraining'), imagesTr and labelsTr hold {len(by_name)}. "
            "Bring back what is missing, or correct the number"
        )
    return [Case(name, tuple(sorted(files)), root / "labelsTr" / f"{name}{ending}") for name, files in by_name.items()]


def _channel_files(path: Path, channels: int) -> tuple[Path, ...]:
    """``NAME_0000``, ``NAME_0001``, ... of NAME, one for each channel."""
    name = image_name(path)
    return tuple(path.with_name(f"{name}_{i:04d}{path.name[len(name) :]}") for i in range(channels))
