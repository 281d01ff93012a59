"""Leaving out the empty space around what a scan shows: skull-stripping, turning and padding leave much of it."""

import torch
from torch import Tensor

from rare_lightning.networks.grids import triple

Box = tuple[slice, slice, slice]


def content_box(image: Tensor) -> Box:
    """Smallest box outside which each channel of ``(C, D, H, W)`` has one value, that of its first voxel.

    The whole volume, where no channel shows anything. Of scans as they were read: interpolation blurs the border.
    """
    shown = torch.stack([channel != channel[0, 0, 0] for channel in image]).any(dim=0)
    return triple(_extent(shown, axis) for axis in range(3))


def _extent(shown: Tensor, axis: int) -> slice:
    others = [other for other in range(3) if other != axis]
    places = shown.any(dim=others[1]).any(dim=others[0]).nonzero().flatten().tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, shown.shape[axis])
