"""Convolution blocks that every network here is built from."""

from typing import Literal

from torch import nn

Normalization = Literal["instance", "group", "batch"]
Activation = Literal["leaky_relu", "relu", "gelu"]


def make_normalization(kind: Normalization, channels: int) -> nn.Module:
    """Normalisation layer. Only ``instance`` and ``group`` treat each sample alone, as the one sweep needs."""
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(min(8, channels), channels)
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    raise ValueError(f"normalization must be instance, group or batch: {kind}")


def make_activation(kind: Activation) -> nn.Module:
    """Activation layer; the slope of leaky ReLU is nnU-Net's 0.01."""
    if kind == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=True)
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "gelu":
        return nn.GELU()
    raise ValueError(f"activation must be leaky_relu, relu or gelu: {kind}")


def conv_block(
    in_channels: int, out_channels: int, normalization: Normalization, activation: Activation
) -> list[nn.Module]:
    """3x3x3 convolution, normalisation, activation. The normalisation's shift replaces the convolution's bias."""
    return [
        nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
        make_normalization(normalization, out_channels),
        make_activation(activation),
    ]


class DoubleConv(nn.Sequential):
    """Twice: 3x3x3 convolution, normalisation, activation, optional channel dropout.

    ``(B, in_channels, D, H, W) -> (B, out_channels, D, H, W)``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        normalization: Normalization = "instance",
        activation: Activation = "leaky_relu",
        dropout: float = 0.0,
    ) -> None:
        layers: list[nn.Module] = []
        for width in (in_channels, out_channels):
            layers += conv_block(width, out_channels, normalization, activation)
            if dropout > 0:
                layers.append(nn.Dropout3d(dropout))
        super().__init__(*layers)
