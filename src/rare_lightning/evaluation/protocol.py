"""The evaluation protocol: every test case, at every level, against two truths (docs/protocol.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from rare_lightning.data.task import Regions
from rare_lightning.metrics import Scores, score_mask
from rare_lightning.networks.grids import Grid, Size3, Spacing, block_average, cells, crop, interpolate, level_spacing

Truth = Literal["level", "fine"]
TRUTHS: tuple[Truth, ...] = ("level", "fine")
TRUTH_LABELS: dict[Truth, str] = {"level": "label on the level grid", "fine": "full-resolution label"}


@dataclass(frozen=True)
class Row:
    """One line of ``cases.csv``: one class, or region, of one case at one level against one truth."""

    case: str
    level: int
    spacing_mm: Spacing
    truth: Truth
    class_name: str
    scores: Scores


def on_level_and_base_grid(probabilities: Tensor, stride: Size3, answer_grid: Grid) -> tuple[Tensor, Tensor]:
    """Softmax ``(B, C, ...)`` of a level's answer on the level grid and on the base grid, whichever it was given on."""
    if answer_grid == "base":
        return block_average(probabilities, stride), probabilities
    return probabilities, interpolate(probabilities, stride)


def answer_by_truth(
    softmax: Tensor, stride: Size3, answer_grid: Grid, shape: Sequence[int], label_stride: Size3 = (1, 1, 1)
) -> dict[Truth, Tensor]:
    """What of a level's answer is compared with each truth.

    Args:
        softmax: ``(1, C, ...)`` on the grid that it was given on.
        stride: Of the level.
        answer_grid: That grid.
        shape: Of the base grid without padding.
        label_stride: Of the label's own grid.

    Returns:
        Class indices, without padding: ``level`` on the level grid, ``fine`` on the label's own.
    """
    on_level, on_base = on_level_and_base_grid(softmax, stride, answer_grid)
    return {
        "level": without_padding(to_labels(on_level[0]), shape, stride),
        "fine": without_padding(to_labels(block_average(on_base, label_stride)[0]), shape, label_stride),
    }


def score_level(
    predictions: dict[Truth, Tensor],
    truths: dict[Truth, Tensor],
    case: str,
    level: int,
    stride: Size3,
    base_spacing: Spacing,
    regions: Regions,
    tolerance_mm: float,
    label_stride: Size3 = (1, 1, 1),
) -> list[Row]:
    """Score the label maps of one case at one level.

    Args:
        predictions: Truth -> class indices ``(D, H, W)``: ``level`` on the level grid, ``fine`` on the label's own.
        truths: The same for the labels.
        case: Case id.
        level: Level the scan entered at.
        stride: Its cumulative stride.
        base_spacing: Of the base grid in mm.
        regions: Names and label values of what is scored.
        tolerance_mm: Of NSD, in mm.
        label_stride: Of the label's own grid, the base grid but for coarse scans.
    """
    scan_spacing, label_spacing = level_spacing(base_spacing, stride), level_spacing(base_spacing, label_stride)
    rows = []
    for truth in TRUTHS:
        spacing = scan_spacing if truth == "level" else label_spacing
        if truth == "level" or stride != label_stride:  # where they are one
            by_region = score_regions(predictions[truth], truths[truth], spacing, regions, tolerance_mm)
        rows += [Row(case, level, scan_spacing, truth, name, scores) for name, scores in by_region.items()]
    return rows


def score_regions(
    prediction: Tensor, truth: Tensor, spacing: tuple[float, ...], regions: Regions, tolerance_mm: float
) -> dict[str, Scores]:
    """Scores by region of class indices ``(D, H, W)`` on a grid of that spacing, in mm per axis."""
    scores = {}
    for name, values in regions.items():
        # torch.isin takes ten times as long for one value.
        predicted, true = (
            reduce(torch.logical_or, (labels == value for value in values)) for labels in (prediction, truth)
        )
        scores[name] = score_mask(predicted, true, spacing, tolerance_mm)
    return scores


def without_padding(volume: Tensor, shape: Sequence[int], stride: Size3 = (1, 1, 1)) -> Tensor:
    """Drop the far end of ``(..., D, H, W)`` that padding added; blocks that hold any voxel of the scan stay."""
    return crop(volume, cells(list(map(int, shape)), stride))


def to_labels(probabilities: Tensor) -> Tensor:
    """``(C, D, H, W)`` -> class indices ``(D, H, W)``."""
    return probabilities.max(dim=0).indices  # torch's argmax over the first axis takes ten times as long
