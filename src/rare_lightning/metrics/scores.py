"""Scores of one mask against one truth."""

import math
from typing import NamedTuple

import torch
from monai.metrics.utils import get_edge_surface_distance
from torch import Tensor

from rare_lightning.networks.grids import is_spacing


class Scores(NamedTuple):
    """Scores of one class, or region, in one case; NaN where undefined.

    Attributes:
        dice: Overlap in 0..1; undefined if the class is absent from both, 0 if absent from one.
        hd95_mm: 95th percentile of the distances from one surface to the other, in mm, the larger of the two
            directions; undefined if either is empty.
        nsd: Normalised surface Dice: share of both surfaces together that lies within the tolerance of the other, in
            0..1; undefined and 0 as Dice.
        volume_diff: (predicted - true) / true volume; undefined if the truth is empty.
    """

    dice: float
    hd95_mm: float
    nsd: float
    volume_diff: float


def dice(prediction: Tensor, truth: Tensor) -> float:
    """Overlap of two masks in 0..1; NaN if both are empty, 0 if one is."""
    voxels = int(prediction.count_nonzero()) + int(truth.count_nonzero())
    return 2 * int((prediction & truth).count_nonzero()) / voxels if voxels else math.nan


def score_mask(prediction: Tensor, truth: Tensor, spacing: tuple[float, ...], tolerance_mm: float) -> Scores:
    """Score one class, or region.

    Args:
        prediction: Mask ``(D, H, W)``, boolean, as ``torch.from_numpy(labels) == 1``.
        truth: The same of the label.
        spacing: Of the grid that both lie on, in mm per axis.
        tolerance_mm: Surface distance that NSD forgives, in mm.

    Raises:
        ValueError: If they are no masks of one grid in three dimensions, or a spacing is not positive.
    """
    for name, mask in (("prediction", prediction), ("truth", truth)):
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 3:
            raise ValueError(f"the {name} must be a boolean tensor (D, H, W): {type(mask).__name__} of {mask.dtype}")
    if prediction.shape != truth.shape or not is_spacing(spacing):
        raise ValueError(
            f"masks must be of one grid, with three spacings above 0 mm: {tuple(prediction.shape)}, "
            f"{tuple(truth.shape)}, {spacing}"
        )
    predicted, true = int(prediction.count_nonzero()), int(truth.count_nonzero())
    overlap = dice(prediction, truth)
    if predicted == 0 or true == 0:
        return Scores(overlap, math.nan, overlap, math.nan if true == 0 else -1.0)
    # One set of distances for both scores: MONAI's own functions for them would each look for them anew.
    _, distances, _ = get_edge_surface_distance(prediction, truth, spacing=spacing, symmetric=True)
    hd95 = max(float(torch.quantile(one_way, 0.95)) for one_way in distances)
    forgiven = tolerance_mm * (1 + 1e-4)  # a header's 1.0000001 mm would make the distance of a voxel exceed 1 mm
    nsd = float((torch.cat(distances) <= forgiven).double().mean())
    return Scores(overlap, hd95, nsd, (predicted - true) / true)
