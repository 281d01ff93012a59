"""The fixed-resolution baseline."""

from collections.abc import Sequence

from rare_lightning.networks.base import Prediction
from rare_lightning.networks.blocks import Activation, Normalization
from rare_lightning.networks.grids import Pyramid, interpolate
from rare_lightning.networks.rare_unet import RAREUNet


class UNet(RAREUNet):
    """Plain 3D U-Net: RARE-UNet's full-resolution path and nothing else.

    It joins the multi-resolution protocol as a clinic would use it: an image of level l >= 1 is brought up to the
    base grid, and segmented there.

    Args:
        in_channels: Image channels.
        out_channels: Classes, background included.
        features: As in :class:`RAREUNet`.
        depth: Down-samplings.
        levels: Highest level of images that are brought up to the base grid.
        strides: Per-axis stride of each down-sampling.
        normalization: As in :class:`RAREUNet`.
        activation: As in :class:`RAREUNet`.
        dropout: As in :class:`RAREUNet`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        features: int | Sequence[int] = 32,
        depth: int = 4,
        levels: int = 3,
        strides: int | Sequence[Sequence[int]] = 2,
        normalization: Normalization = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            in_channels, out_channels, features, depth, 0, strides, normalization, activation, dropout, head="plain"
        )
        # Kept so that a checkpoint can say how to build this object again.
        self.init_args = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.levels = tuple(range(levels + 1))
        self.answer_grid = "base"

    def forward(self, images: Pyramid) -> Prediction:
        """Segment each level on the base grid: ``(B, in_channels, D_l, H_l, W_l) -> (B, C, D_0, H_0, W_0)``."""
        unknown = set(images) - set(self.levels)
        if unknown:
            raise ValueError(f"images have levels {sorted(images)}: the network knows levels {list(self.levels)}")
        logits = {
            level: super(UNet, self).forward({0: interpolate(image, self.level_stride(level))}).logits[0]
            for level, image in sorted(images.items())
        }
        return Prediction(logits, {}, {})
