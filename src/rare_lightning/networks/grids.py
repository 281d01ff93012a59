"""Level grids: how the voxels of level l lie on those of the base grid.

The voxel centres of level l lie at the centre of the block of base voxels that they replace, so bringing a map
down is a block average, and bringing it up is interpolation with half-voxel offsets (``align_corners=False``).
"""

from collections.abc import Iterable, Sequence
from math import inf, prod
from typing import Literal, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

Grid = Literal["level", "base"]
T = TypeVar("T")
Size3 = tuple[int, int, int]
Spacing = tuple[float, float, float]
Pyramid = dict[int, Tensor]
"""Level -> tensor ``(B, C, D_l, H_l, W_l)``."""


def triple(values: Iterable[T]) -> tuple[T, T, T]:
    """Three values, one per axis.

    Raises:
        ValueError: If there are fewer or more.
    """
    x, y, z = values
    return x, y, z


def stage_strides(depth: int, strides: Sequence[Sequence[int]] | int = 2) -> list[Size3]:
    """Strides of the ``depth`` down-samplings of a network, per axis.

    Args:
        depth: Number of down-samplings.
        strides: One number for all axes and stages, or ``depth`` triples, for example ``[[2, 2, 1], [2, 2, 2]]`` for
            a task whose third axis is twice as coarse as the others.

    Raises:
        ValueError: If there are not ``depth`` triples of positive numbers.
    """
    if depth < 1:
        raise ValueError(f"depth ({depth}) must be >= 1")
    if isinstance(strides, int):
        strides = [(strides,) * 3] * depth
    if len(strides) != depth or any(len(stride) != 3 or min(stride) < 1 for stride in strides):
        raise ValueError(f"strides must be {depth} triples of numbers >= 1, one per stage of depth {depth}: {strides}")
    return [(int(x), int(y), int(z)) for x, y, z in strides]


def level_stride(strides: Sequence[Size3], level: int) -> Size3:
    """Voxel size of a level in base voxels, per axis; of the bottleneck for ``level=len(strides)``.

    Raises:
        ValueError: If the level is deeper than that.
    """
    if level > len(strides):
        raise ValueError(f"level {level} is deeper than the {len(strides)} down-samplings: levels must be <= depth")
    return triple(prod([stride[axis] for stride in strides[:level]]) for axis in range(3))


def level_spacing(spacing: Sequence[float], stride: Size3) -> Spacing:
    """Spacing of a level in mm per axis, of that of the base grid and the level's stride."""
    return triple(mm * s for mm, s in zip(spacing, stride, strict=True))


def round_up(size: Sequence[int], multiple: Sequence[int]) -> Size3:
    """Smallest multiples that are not smaller."""
    return triple(n * m for n, m in zip(cells(size, multiple), multiple, strict=True))


def is_spacing(spacing: Sequence[float]) -> TypeGuard[Spacing]:
    """Whether it is three positive numbers of mm."""
    return len(spacing) == 3 and all(0 < mm < inf for mm in spacing)


def cells(size: Sequence[int], stride: Sequence[int]) -> Size3:
    """Voxels of a level grid of that stride that cover so many, the last of them in part."""
    return triple(-(-n // s) for n, s in zip(size, stride, strict=True))


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """The first voxels of ``(..., D, H, W)`` along each axis: what padding added at the far end is cut off."""
    d, h, w = size
    return x[..., :d, :h, :w]


def pad_to_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat the last voxels of ``(..., D, H, W)`` up to ``size``; the first voxel stays first, larger axes stay."""
    for axis, n in zip((-3, -2, -1), size, strict=True):
        extra = n - x.shape[axis]
        if extra > 0:
            edge = x.narrow(axis, x.shape[axis] - 1, 1)
            x = torch.cat([x, edge.repeat_interleave(extra, dim=axis)], dim=axis)
    return x


def block_average(x: Tensor, stride: Size3) -> Tensor:
    """Average ``(B, C, D, H, W)`` over blocks: base grid -> level grid of that stride."""
    return x if stride == (1, 1, 1) else F.avg_pool3d(x, stride)


def repeat_blocks(x: Tensor, stride: Size3) -> Tensor:
    """Repeat the voxels of ``(..., D, H, W)`` over blocks: level grid of that stride -> base grid."""
    for axis, step in zip((-3, -2, -1), stride, strict=True):
        x = x.repeat_interleave(step, dim=axis) if step > 1 else x
    return x


def interpolate(x: Tensor, stride: Size3) -> Tensor:
    """Trilinear ``(B, C, D, H, W)``: level grid of that stride -> base grid, physically aligned."""
    if stride == (1, 1, 1):
        return x
    # The size, not scale_factor: exact for whole strides, and traceable.
    size = [n * s for n, s in zip(x.shape[2:], stride, strict=True)]
    return F.interpolate(x, size=size, mode="trilinear", align_corners=False)
