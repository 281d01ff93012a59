"""The fixed-resolution baseline."""

from collections.abc import Sequence

from torch import Tensor

from rare_lightning.networks.base import DeepLogits, FixedResolutionNetwork
from rare_lightning.networks.blocks import Activation, Normalization
from rare_lightning.networks.rare_unet import RAREUNet


class UNet(FixedResolutionNetwork):
    """Plain 3D U-Net: RARE-UNet's full-resolution path and nothing else; other levels are brought up to the base grid.

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
        residual: As in :class:`RAREUNet`.
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
        residual: bool = False,
    ) -> None:
        super().__init__(levels, depth, strides)
        self.network = RAREUNet(
            in_channels,
            out_channels,
            features,
            depth,
            levels=0,
            strides=strides,
            normalization=normalization,
            activation=activation,
            dropout=dropout,
            head="plain",
            residual=residual,
        )
        self.coarsest_stride = self.network.coarsest_stride

    def segment(self, image: Tensor) -> tuple[Tensor, list[DeepLogits]]:
        """``(B, in_channels, D, H, W)`` on the base grid to logits ``(B, C, D, H, W)``."""
        return self.network({0: image}).logits[0], []
