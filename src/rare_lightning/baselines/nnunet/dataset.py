"""A Decathlon task and its split -> the folders that nnU-Net reads, and the test scans of every level."""

import gzip
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
import SimpleITK as sitk
import torchio as tio
from torch import Tensor

from rare_lightning.data.geometry import Geometry
from rare_lightning.data.pyramid import LabelDownsampling, ToLevelGrid
from rare_lightning.data.splits import Split
from rare_lightning.data.task import Task
from rare_lightning.data.voxels import channels_first, channels_of, is_nifti, read_nifti
from rare_lightning.evaluation.protocol import without_padding
from rare_lightning.files import appearing, write_json
from rare_lightning.networks.grids import Size3, interpolate, pad_to_size, round_up

Feed = Literal["native", "upsampled"]
FEEDS: tuple[Feed, ...] = ("native", "upsampled")
"""How a test scan of a level is given to nnU-Net: as it is, or brought to the base grid before."""

DATASET_ID = 1
"""Each comparison has nnU-Net folders of its own, so one number does for all."""


@dataclass(frozen=True)
class LevelScan:
    """A test case at one level, as the evaluation protocol has it.

    Attributes:
        level: The level.
        stride: Its cumulative stride.
        image: ``(C, D_l, H_l, W_l)``, intensities of the file.
        label: ``(D_l, H_l, W_l)``.
        affine: ``(4, 4)`` of the level grid, voxel index -> mm.
    """

    level: int
    stride: Size3
    image: Tensor
    label: Tensor
    affine: np.ndarray


def dataset_name(task: Task) -> str:
    """``Dataset001_Hippocampus``: nnU-Net allows no other form."""
    return f"Dataset{DATASET_ID:03d}_{re.sub('[^A-Za-z0-9]+', '', task.name) or 'Task'}"


def scan_name(case_id: str, level: int) -> str:
    """What a test scan and its answer are called."""
    return f"{case_id}_level_{level}"


def levels_fed(feed: Feed, levels: Sequence[int]) -> list[int]:
    """Levels that a feed has scans of its own for: at level 0 there is nothing to bring up."""
    return [level for level in levels if level > 0 or feed == "native"]


def write_dataset(task: Task, split: Split, folder: Path) -> None:
    """Write the training and validation cases, the test cases never, as nnU-Net's raw dataset.

    The files stay on their own grids with their own headers; channels of a 4D file become files of their own.

    Args:
        task: Its labelled cases are read.
        split: Which of them to write.
        folder: ``nnUNet_raw/DatasetNNN_NAME``; appears whole or not at all.
    """
    cases = [case for case in task.cases if case.case_id in {*split.train, *split.val}]
    with appearing(folder) as scratch:
        for name in ("imagesTr", "labelsTr"):
            (scratch / name).mkdir()
        for case in cases:
            channels = [f"{case.case_id}_{channel:04d}.nii.gz" for channel in range(len(task.channels))]
            _write_volumes(case.images, [scratch / "imagesTr" / name for name in channels])
            _write_volumes([case.label], [scratch / "labelsTr" / f"{case.case_id}.nii.gz"])
        description = {
            "name": task.name,
            "channel_names": {str(i): name for i, name in enumerate(task.channels)},
            "labels": {"background": 0, **{name: i for i, name in enumerate(task.classes) if i > 0}},
            "numTraining": len(cases),
            "file_ending": ".nii.gz",
            # Its default reader ignores orientations: a scan stored flipped would be segmented flipped.
            "overwrite_image_reader_writer": "NibabelIOWithReorient",
        }
        write_json(description, scratch / "dataset.json")


def write_splits(split: Split, path: Path) -> None:
    """Write training and validation cases as fold 0 of nnU-Net's ``splits_final.json``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json([{"train": split.train, "val": split.val}], path)


def write_scans(cases: Iterable[tuple[str, list[LevelScan]]], folder: Path) -> None:
    """Write test scans with the headers of their grids into ``folder/native`` and ``folder/upsampled``.

    Args:
        cases: Case ids with their scans, level 0 first.
        folder: Appears whole or not at all.
    """
    with appearing(folder) as scratch:
        for feed in FEEDS:
            (scratch / feed).mkdir()
        for case_id, scans in cases:
            for scan in scans:
                name = scan_name(case_id, scan.level)
                _write_scan(scan.image, scan.affine, scratch / "native", name)
                if levels_fed("upsampled", [scan.level]):
                    image = interpolate(scan.image[None], scan.stride)[0]
                    _write_scan(image, scans[0].affine, scratch / "upsampled", name)


def level_scans(
    subject: tio.Subject, strides: Sequence[Size3], label_downsampling: LabelDownsampling = "majority"
) -> list[LevelScan]:
    """Level pyramid of a case on the base grid, made like those of ``rare test``, its padding cut off.

    Args:
        subject: ``image`` and ``label`` on the base grid.
        strides: Cumulative stride of each level.
        label_downsampling: How the label reaches the level grids.
    """
    shape = subject.spatial_shape
    for part in (subject.image, subject.label):
        part.set_data(pad_to_size(part.data, round_up(shape, strides[-1])))
    scans = []
    for level, stride in enumerate(strides):
        down = subject if level == 0 else ToLevelGrid(stride, label_downsampling)(subject)
        image = without_padding(down.image.data, shape, stride)
        label = without_padding(down.label.data[0], shape, stride)
        scans.append(LevelScan(level, stride, image, label, down.image.affine))
    return scans


def _write_volumes(paths: Sequence[Path], targets: Sequence[Path]) -> None:
    """Write the volumes of image files as one compressed NIfTI file each; those of 3D NIfTI are copied as they are."""
    remaining = iter(targets)
    for path in paths:
        if not is_nifti(path):
            image = sitk.ReadImage(path)
            for channel in channels_of(image, str(path)):
                sitk.WriteImage(Geometry.of(image).stamp(channel), next(remaining))
            continue
        header = nib.load(path).header
        if len(header.get_data_shape()) == 3:
            _copy_compressed(path, next(remaining))
            continue
        voxels = read_nifti(path)
        header.set_data_dtype(np.float32)
        header.set_slope_inter(1, 0)
        for volume in channels_first(voxels):
            # With the affines and codes of its header.
            nib.Nifti1Image(volume, None, header).to_filename(next(remaining))


def _copy_compressed(path: Path, target: Path) -> None:
    if path.suffix.lower() == ".gz":
        shutil.copyfile(path, target)
        return
    with open(path, "rb") as plain, gzip.open(target, "wb") as compressed:
        shutil.copyfileobj(plain, compressed)


def _write_scan(image: Tensor, affine: np.ndarray, folder: Path, name: str) -> None:
    for channel, volume in enumerate(image):
        file = nib.Nifti1Image(volume.numpy(), affine)
        file.set_sform(affine, code=1)
        file.set_qform(affine, code=1)
        file.header.set_xyzt_units("mm")
        file.to_filename(folder / f"{name}_{channel:04d}.nii.gz")
