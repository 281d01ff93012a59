"""Resampling between grids that share their axes and their first corner, separably and in slabs."""

from collections.abc import Callable, Iterator, Sequence
from math import ceil
from typing import Literal

import torch
from torch import Tensor

from rare_lightning.networks.grids import Size3, triple

Order = Literal[1, 3]  # of the interpolation: linear, or cubic


def covering_size(size: Sequence[int], spacing: Sequence[float], new_spacing: Sequence[float]) -> Size3:
    """Voxels that cover the same extent; a rest of less than a thousandth of a voxel is rounding in the header."""
    return triple(max(1, ceil(n * mm / new - 1e-3)) for n, mm, new in zip(size, spacing, new_spacing, strict=True))


def axis_weights(size: int, spacing: float, new_size: int, new_spacing: float, order: Order) -> Tensor:
    """Matrix ``(new_size, size)`` that brings values along one axis to another spacing; rows sum to 1.

    Coarser voxels average what they cover, in shares of whole voxels, which for whole ratios is the block average
    that level grids are made by; finer ones interpolate between voxel centres. Both grids begin at the same corner.
    What lies beyond the far end repeats the last voxel.

    Args:
        size: Voxels.
        spacing: Their spacing in mm.
        new_size: Voxels wanted.
        new_spacing: Their spacing in mm.
        order: 1 between two voxels, which keeps probabilities between 0 and 1; 3 between four, by the kernel of Keys,
            Cubic Convolution Interpolation for Digital Image Processing, 1981 (Catmull-Rom), which keeps images sharp.
    """
    ratio = new_spacing / spacing
    index = torch.arange(new_size, dtype=torch.float64)
    source = torch.arange(size, dtype=torch.float64)
    if ratio > 1:
        # Length that each pair of voxels shares; the last voxel goes on for ever.
        start, end = (index * ratio)[:, None], ((index + 1) * ratio)[:, None]
        far = torch.where(source == size - 1, torch.inf, source + 1)
        weights = (torch.minimum(end, far) - torch.maximum(start, source)).clamp_min(0)
    else:
        centre = ((index + 0.5) * ratio - 0.5).clamp(0, size - 1)
        voxel = centre.floor().long()[:, None] + torch.arange((1 - order) // 2, (3 + order) // 2)
        shares = (_linear if order == 1 else _cubic)((centre[:, None] - voxel).abs())
        weights = torch.zeros(new_size, size, dtype=torch.float64)
        weights.scatter_add_(1, voxel.clamp(0, size - 1), shares)
    return (weights / weights.sum(dim=1, keepdim=True)).float()


def _linear(distance: Tensor) -> Tensor:
    return (1 - distance).clamp_min(0)


def _cubic(distance: Tensor) -> Tensor:
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    return torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))


def resample(
    volume: Tensor,
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    new_size: Sequence[int],
    order: Order = 3,
) -> Tensor:
    """Bring ``(C, D, H, W)`` to another spacing (mm per axis) and size, axis by axis; see :func:`axis_weights`."""
    for axis in _cheapest_first(volume.shape[1:], new_size):
        volume = _resample_axis(volume, axis, spacing[axis], new_spacing[axis], new_size[axis], order)
    return volume


def resample_labels(
    labels: Tensor, spacing: Sequence[float], new_spacing: Sequence[float], new_size: Sequence[int]
) -> Tensor:
    """:func:`resample` for classes ``(1, D, H, W)``, each voxel to the one with the largest share."""
    return largest_share(labels, lambda mask: resample(mask, spacing, new_spacing, new_size, order=1))


def largest_share(labels: Tensor, bring: Callable[[Tensor], Tensor]) -> Tensor:
    """Bring classes ``(B, D, H, W)`` to another grid by their shares of its voxels; of equals, the lowest.

    Args:
        labels: Class indices.
        bring: A class's mask ``(B, D, H, W)``, as float, to its share of each voxel of the other grid.
    """
    largest = bring((labels == 0).float())
    winner = torch.zeros_like(largest, dtype=labels.dtype)
    present = torch.bincount(labels.flatten().int()).nonzero().flatten().tolist()
    for value in filter(None, present):  # one at a time: some tasks have a hundred, and volumes are large
        share = bring((labels == value).float())
        winner[share > largest] = value
        largest = torch.maximum(largest, share)
    return winner


def resample_in_slabs(
    volume: Tensor,
    spacing: Sequence[float],
    new_spacing: Sequence[float],
    new_size: Sequence[int],
    order: Order,
    values: int = 16_000_000,
) -> Iterator[tuple[slice, Tensor]]:
    """:func:`resample`, a slab of the first axis at a time, for results that do not fit into memory whole.

    Args:
        volume: ``(C, D, H, W)``.
        spacing: Its spacing in mm.
        new_spacing: Spacing wanted.
        new_size: Size wanted.
        order: Of the interpolation.
        values: Of a slab, roughly, those of all channels.

    Yields:
        Where on the first axis the slab lies, and the slab ``(C, d, H, W)``.
    """
    shrinking = [axis for axis in (1, 2) if new_size[axis] < volume.shape[axis + 1]]
    for axis in shrinking:  # once for all slabs
        volume = _resample_axis(volume, axis, spacing[axis], new_spacing[axis], new_size[axis], order)
    weights = _weights_of_axis(volume, 0, spacing[0], new_spacing[0], new_size[0], order)
    thickness = max(1, values // (len(volume) * new_size[1] * new_size[2]))
    for first in range(0, new_size[0], thickness):
        where = slice(first, min(first + thickness, new_size[0]))
        slab = volume[:, where] if weights is None else _multiply(volume, 0, weights[where])
        for axis in {1, 2}.difference(shrinking):
            slab = _resample_axis(slab, axis, spacing[axis], new_spacing[axis], new_size[axis], order)
        yield where, slab


def _cheapest_first(size: Sequence[int], new_size: Sequence[int]) -> list[int]:
    return sorted(range(3), key=lambda axis: new_size[axis] / size[axis])


def _weights_of_axis(
    volume: Tensor, axis: int, spacing: float, new_spacing: float, new_size: int, order: Order
) -> Tensor | None:
    """None where nothing changes."""
    size = volume.shape[axis + 1]
    if size == new_size and abs(spacing - new_spacing) * size < 1e-3 * spacing:
        return None
    return axis_weights(size, spacing, new_size, new_spacing, order).to(volume.device)


def _resample_axis(
    volume: Tensor, axis: int, spacing: float, new_spacing: float, new_size: int, order: Order
) -> Tensor:
    weights = _weights_of_axis(volume, axis, spacing, new_spacing, new_size, order)
    return volume if weights is None else _multiply(volume, axis, weights)


def _multiply(volume: Tensor, axis: int, weights: Tensor) -> Tensor:
    """Weights along one spatial axis, over the voxels that have any: a slab needs few of them."""
    used = torch.nonzero(weights.any(dim=0)).flatten()
    low, high = int(used[0]), int(used[-1]) + 1
    part, weights = volume.narrow(axis + 1, low, high - low), weights[:, low:high]
    if axis == 2:  # as products of matrices that lie in memory as they are; tensordot would copy the volume first
        return part @ weights.T
    return weights @ part if axis == 1 else (weights @ part.flatten(2)).view(-1, len(weights), *part.shape[2:])
