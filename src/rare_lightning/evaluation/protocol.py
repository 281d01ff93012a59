"""The evaluation protocol: every test case, at every level, against two truths (docs/protocol.md)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rare_lightning.data.task import Regions
from rare_lightning.metrics import Scores, score_mask
from rare_lightning.networks.grids import Grid, Size3, block_average, interpolate, level_spacing

Truth = Literal["level", "fine"]
TRUTHS: tuple[Truth, ...] = ("level", "fine")
TRUTH_LABELS: dict[Truth, str] = {"level": "label on the level grid", "fine": "full-resolution label"}


@dataclass(frozen=True)
class Row:
    """One line of ``cases.csv``: one class, or region, of one case at one level against one truth."""

    case: str
    level: int
    spacing_mm: tuple[float, float, float]
    truth: Truth
    class_name: str
    scores: Scores


def on_level_and_base_grid(probabilities: Tensor, stride: Size3, answer_grid: Grid) -> tuple[Tensor, Tensor]:
    """Softmax ``(B, C, ...)`` of a level's answer on the level grid and on the base grid, whichever it was given on."""
    if answer_grid == "base":
        return block_average(probabilities, stride), probabilities
    return probabilities, interpolate(probabilities, stride)


def score_level(
    predictions: dict[Truth, Tensor],
    truths: dict[Truth, Tensor],
    case: str,
    level: int,
    stride: Size3,
    base_spacing: tuple[float, float, float],
    regions: Regions,
    tolerance_mm: float,
) -> list[Row]:
    """Score the label maps of one case at one level.

    Args:
        predictions: Truth -> class indices ``(D, H, W)``: ``level`` on the level grid, ``fine`` on the base grid.
        truths: The same for the labels.
        case: Case id.
        level: Level the scan entered at.
        stride: Its cumulative stride.
        base_spacing: Of the base grid in mm.
        regions: Names and label values of what is scored.
        tolerance_mm: Of NSD, in mm.
    """
    scan_spacing = level_spacing(base_spacing, stride)
    rows = []
    for truth in TRUTHS:
        spacing = scan_spacing if truth == "level" else base_spacing
        if truth == "level" or stride != (1, 1, 1):  # at level 0 they are one
            by_region = score_regions(predictions[truth], truths[truth], spacing, regions, tolerance_mm)
        rows += [Row(case, level, scan_spacing, truth, name, scores) for name, scores in by_region.items()]
    return rows


def score_regions(
    prediction: Tensor, truth: Tensor, spacing: tuple[float, ...], regions: Regions, tolerance_mm: float
) -> dict[str, Scores]:
    """Scores by region of class indices ``(D, H, W)`` on a grid of that spacing, in mm per axis."""
    scores = {}
    for name, values in regions.items():
        of_region = torch.tensor(values, device=truth.device)
        masks = torch.isin(prediction, of_region), torch.isin(truth, of_region)
        scores[name] = score_mask(*masks, spacing, tolerance_mm)
    return scores


def without_padding(volume: Tensor, shape: Sequence[int], stride: Size3 = (1, 1, 1)) -> Tensor:
    """Drop the far end of ``(..., D, H, W)`` that padding added; blocks that hold any voxel of the scan stay."""
    d, h, w = (-(-n // s) for n, s in zip(map(int, shape), stride, strict=True))
    return volume[..., :d, :h, :w]


def to_labels(probabilities: Tensor) -> Tensor:
    """``(C, D, H, W)`` -> class indices ``(D, H, W)``."""
    return probabilities.max(dim=0).indices  # torch's argmax over the first axis takes ten times as long
