"""Augmentation of level pyramids: scans whose spacing lies between the levels, or is coarser along one axis."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

import torch
from torch import Tensor

from rare_lightning.data.resampling import covering_size, resample
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import Size3


@dataclass(frozen=True)
class RandomSpacing:
    """Shows each level the scans that routing sends there, and not only those of exactly its spacing.

    A level's image is brought down to a spacing that is drawn for it, and from there to the level grid, as a scan is
    at inference. Labels stay as they are: what the scan no longer shows is still to be found.

    Args:
        in_between: Share of images with a spacing between the level's and twice that, drawn on a logarithmic scale,
            alike along the axes.
        anisotropic: Share of images with one axis, drawn too, that has a spacing of its own in that range.

    Raises:
        UserError: If a share is not between 0 and 1.
    """

    in_between: float = 0.0
    anisotropic: float = 0.0

    def __post_init__(self) -> None:
        for name, share in (("in_between", self.in_between), ("anisotropic", self.anisotropic)):
            if not 0 <= share <= 1:
                raise UserError(f"data.random_spacing.{name} ({share}) must be a share between 0 and 1")

    def draw(self, stride: Sequence[int]) -> list[float]:
        """Spacing in base voxels per axis of a scan for the level of this stride."""
        factors = [2 ** _uniform() if _uniform() < self.in_between else 1.0] * 3
        if _uniform() < self.anisotropic:
            factors[int(torch.randint(3, ()))] = 2 ** _uniform()
        return [factor * s for factor, s in zip(factors, stride, strict=True)]

    def __call__(self, image: Tensor, stride: Size3) -> tuple[Tensor, float]:
        """``(C, D, H, W)`` on the base grid -> the image of a level, ``(C, D_l, H_l, W_l)``.

        Args:
            image: Sizes must be multiples of the stride.
            stride: Of the level, in base voxels.

        Returns:
            The image, and how far the scan's spacing lies above the level's, in octaves, as sum over the axes: 0 if
            it is that, 3 if it is twice that along all axes, 1 along one.
        """
        spacing = self.draw(stride)
        size = covering_size(image.shape[1:], (1, 1, 1), spacing)
        scan = resample(image, (1, 1, 1), spacing, size)
        octaves = sum(log2(mm / s) for mm, s in zip(spacing, stride, strict=True))
        level_size = [n // s for n, s in zip(image.shape[1:], stride, strict=True)]
        return resample(scan, spacing, stride, level_size), octaves


EXACT = RandomSpacing()  # the spacings of the levels and no others


def _uniform() -> float:
    return float(torch.rand(()))
