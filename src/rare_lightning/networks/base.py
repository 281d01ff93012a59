"""What every network here takes, returns and says of itself."""

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import nn

from rare_lightning.networks.grids import Pyramid, Size3
from rare_lightning.networks.heads import Grid


class Prediction(NamedTuple):
    """What a network returns for a pyramid of images.

    Attributes:
        logits: Level -> ``(B, C, D, H, W)``, on the base or the level grid as the network's ``answer_grid`` says.
        gateway: Level >= 1 -> features ``(B, F_l, D_l, H_l, W_l)`` of its gateway.
        encoder: The same levels -> features of level 0 at that stage; empty where level 0 did not take part.
    """

    logits: Pyramid
    gateway: Pyramid
    encoder: Pyramid


class MultiResolutionNetwork(nn.Module, ABC):
    """A network for pyramids of images. Subclass it to train and evaluate another architecture the same way.

    Attributes:
        levels: Levels it can segment.
        answer_grid: Grid of its logits: ``base`` for every level, or the ``level`` grid.
        coarsest_stride: Voxel size of its coarsest features in base voxels, per axis.
    """

    levels: tuple[int, ...]
    answer_grid: Grid
    coarsest_stride: Size3

    @abstractmethod
    def level_stride(self, level: int) -> Size3:
        """Voxel size of a level in base voxels, per axis."""

    @abstractmethod
    def forward(self, images: Pyramid) -> Prediction:
        """Level -> ``(B, in_channels, D_l, H_l, W_l)``, any subset of the levels, to logits by level."""
