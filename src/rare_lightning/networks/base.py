"""What every network here takes, returns and says of itself."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from rare_lightning.description import SelfDescribing
from rare_lightning.networks.grids import Grid, Pyramid, Size3, interpolate, level_stride, stage_strides, triple


class DeepLogits(NamedTuple):
    """Logits of a decoder stage below the answer, for deep supervision.

    Attributes:
        stride: Voxel size in voxels of the answer's grid, per axis.
        logits: ``(B, C, D, H, W)``, sizes those of the answer over the stride, rounded up.
    """

    stride: Size3
    logits: Tensor


class Prediction(NamedTuple):
    """What a network returns for a pyramid of images.

    Attributes:
        logits: Level -> ``(B, C, D, H, W)``, on the base or the level grid as the network's ``answer_grid`` says.
        gateway: Level >= 1 -> features ``(B, F_l, D_l, H_l, W_l)`` of its gateway.
        encoder: The same levels -> features of level 0 at that stage; empty where level 0 did not take part.
        deep: Level -> logits of its decoder stages, finest first, if the network has them supervised.
    """

    logits: Pyramid
    gateway: Pyramid
    encoder: Pyramid
    deep: dict[int, list[DeepLogits]] = {}  # noqa: RUF012  # a named tuple's default, never written to


class MultiResolutionNetwork(SelfDescribing, nn.Module, ABC):
    """A network for pyramids of images. Subclass it to train and evaluate another architecture the same way.

    Attributes:
        levels: Levels it can segment.
        answer_grid: Grid of its logits: ``base`` for every level, or the ``level`` grid.
        coarsest_stride: Voxel size of its coarsest features in base voxels, per axis.
    """

    levels: tuple[int, ...]
    answer_grid: Grid
    coarsest_stride: Size3

    @property
    def smallest_input(self) -> Size3:
        """Base voxels per axis of the smallest windows: fewer may take as much memory, or be too few to normalise."""
        return triple(2 * n for n in self.coarsest_stride)

    @abstractmethod
    def level_stride(self, level: int) -> Size3:
        """Voxel size of a level in base voxels, per axis."""

    @abstractmethod
    def forward(self, images: Pyramid) -> Prediction:
        """Level -> ``(B, in_channels, D_l, H_l, W_l)``, any subset of the levels, to logits by level."""

    def refuse_other_levels(self, images: Pyramid) -> None:
        """Check what :meth:`forward` is given.

        Raises:
            TypeError: If it is no dictionary.
            ValueError: If it is empty, holds levels that the network does not know, or an image without batch.
        """
        if not isinstance(images, dict):
            raise TypeError(f"images must be a dict of tensors by level, such as {{0: image}}: {type(images).__name__}")
        if not images or not set(images) <= set(self.levels):
            raise ValueError(f"images have levels {sorted(images)}: the network knows levels {list(self.levels)}")
        for level, image in images.items():
            if image.ndim != 5:
                raise ValueError(f"the image of level {level} must be (B, in_channels, D, H, W): {tuple(image.shape)}")


class FixedResolutionNetwork(MultiResolutionNetwork):
    """A network for the base grid, which joins the multi-resolution protocol as a clinic would use it.

    An image of level l >= 1 is interpolated to the base grid and segmented there.

    Args:
        levels: Highest level of images that are brought up to the base grid.
        depth: Down-samplings that the levels are defined by; the network's own may differ.
        strides: Per-axis stride of each of them.
    """

    answer_grid: Grid = "base"

    def __init__(self, levels: int, depth: int, strides: int | Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.levels = tuple(range(levels + 1))
        self._level_strides = stage_strides(depth, strides)

    def level_stride(self, level: int) -> Size3:
        """Voxel size of a level in base voxels, per axis."""
        return level_stride(self._level_strides, level)

    @abstractmethod
    def segment(self, image: Tensor) -> tuple[Tensor, list[DeepLogits]]:
        """``(B, in_channels, D, H, W)`` on the base grid to logits ``(B, C, D, H, W)``, and those of deeper stages."""

    def forward(self, images: Pyramid) -> Prediction:
        """Segment each level on the base grid: ``(B, in_channels, D_l, H_l, W_l) -> (B, C, D_0, H_0, W_0)``.

        Raises:
            TypeError: If images are not given by level.
            ValueError: If a level is unknown.
        """
        self.refuse_other_levels(images)
        logits: Pyramid = {}
        deep: dict[int, list[DeepLogits]] = {}
        for level, image in sorted(images.items()):
            logits[level], deep[level] = self.segment(interpolate(image, self.level_stride(level)))
        return Prediction(logits, {}, {}, deep)
