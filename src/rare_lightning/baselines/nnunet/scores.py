"""nnU-Net's softmax files -> the scores that ``rare test`` would give."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from nibabel.affines import voxel_sizes
from torch import Tensor

from rare_lightning.baselines.nnunet.dataset import LevelScan
from rare_lightning.data.pyramid import downsample_label
from rare_lightning.data.routing import FULL, FinestGrids
from rare_lightning.data.task import Regions
from rare_lightning.errors import UserError
from rare_lightning.evaluation.protocol import (
    Row,
    Truth,
    answer_by_truth,
    score_level,
)
from rare_lightning.networks.grids import Grid, triple


def read_softmax(path: Path, classes: int, shape: Sequence[int]) -> Tensor:
    """Softmax ``(C, D, H, W)`` of a scan, in its own order of axes; nnU-Net writes them in reverse.

    Args:
        path: Written by ``nnUNetv2_predict --save_probabilities``.
        classes: Expected ones, with background.
        shape: Of the scan.

    Raises:
        UserError: If the file is broken, or not of this scan.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            softmax = content["probabilities"].astype(np.float32).transpose(0, 3, 2, 1)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a softmax of nnU-Net ({error}); remove its folder and run again") from error
    if softmax.shape != (classes, *shape):
        raise UserError(
            f"{path}: has shape {softmax.shape}, its scan needs {(classes, *shape)}; remove its folder and run again"
        )
    return torch.from_numpy(np.ascontiguousarray(softmax))


def score_case(
    case_id: str,
    scans: Sequence[LevelScan],
    softmax_of: Callable[[LevelScan], tuple[Tensor, Grid]],
    regions: Regions,
    tolerance_mm: float,
    grids: FinestGrids = FULL,
) -> list[Row]:
    """Score the answers to a case at every level against both truths, on the voxels that ``rare test`` scores.

    Args:
        case_id: The case.
        scans: Its levels, level 0 first.
        softmax_of: Softmax ``(C, D, H, W)`` of a scan, and the grid it is on: the scan's own, or the scan's brought up
            to the base spacing.
        regions: Names and label values of what is scored.
        tolerance_mm: Of NSD.
        grids: That the scan fills: finer levels are not scored.
    """
    rows = []
    fine = scans[0].label
    spacing = triple(voxel_sizes(scans[0].affine).tolist())
    label = downsample_label(fine[None], grids.label_stride)[0]
    for scan in scans[grids.level :]:
        softmax, grid = softmax_of(scan)
        predictions = answer_by_truth(softmax[None], scan.stride, grid, fine.shape, grids.label_stride)
        truths: dict[Truth, Tensor] = {"level": scan.label, "fine": label}
        rows += score_level(
            predictions, truths, case_id, scan.level, scan.stride, spacing, regions, tolerance_mm, grids.label_stride
        )
    return rows
