"""Convolution blocks that every network here is built from."""

from math import gcd
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

MAX_WIDTH = 320  # nnU-Net's cap, which the paper adopts
Normalization = Literal["instance", "group", "batch"]
Activation = Literal["leaky_relu", "relu", "gelu"]


def make_normalization(kind: Normalization, channels: int) -> nn.Module:
    """Normalisation layer. Only ``instance`` and ``group`` treat each sample alone, as the one sweep needs.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    if kind == "group":
        return nn.GroupNorm(gcd(8, channels), channels)
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    raise ValueError(f"normalization must be instance, group or batch: {kind}")


def make_activation(kind: Activation) -> nn.Module:
    """Activation layer; the slope of leaky ReLU is nnU-Net's 0.01.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind == "leaky_relu":
        return nn.LeakyReLU(0.01, inplace=True)
    if kind == "relu":
        return nn.ReLU(inplace=True)
    if kind == "gelu":
        return nn.GELU()
    raise ValueError(f"activation must be leaky_relu, relu or gelu: {kind}")


class Conv3x3x3(nn.Conv3d):
    """3x3x3 convolution without bias that keeps the size, ``(B, in_channels, D, H, W) -> (B, out_channels, D, H, W)``.

    On CPUs that multiply bfloat16, PyTorch 2.13 reads memory that nobody wrote for the gradient of the kernel where D
    is 2: it is wrong by orders of magnitude, or NaN. While training there, the plane of padding is laid on beforehand,
    which changes nothing else.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The convolution."""
        # Training comes first in the condition, so that exported networks have no trace of it.
        if self.training and x.device.type == "cpu" and x.shape[2] == 2:
            return super().forward(F.pad(x, (0, 0, 0, 0, 0, 1)))[:, :, :2]
        return super().forward(x)


def conv_block(
    in_channels: int, out_channels: int, normalization: Normalization, activation: Activation
) -> list[nn.Module]:
    """3x3x3 convolution, normalisation, activation. The normalisation's shift replaces the convolution's bias."""
    return [
        Conv3x3x3(in_channels, out_channels),
        make_normalization(normalization, out_channels),
        make_activation(activation),
    ]


class DoubleConv(nn.Sequential):
    """Twice: 3x3x3 convolution, normalisation, activation, optional channel dropout.

    ``(B, in_channels, D, H, W) -> (B, out_channels, D, H, W)``.

    Args:
        in_channels: Of the input.
        out_channels: Of both convolutions.
        normalization: After each convolution.
        activation: After each normalisation.
        dropout: Probability that a channel is zeroed, after each activation.
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
        self.widths = in_channels, out_channels


class ResidualConv(nn.Module):
    """`DoubleConv` with a short cut (https://arxiv.org/abs/1512.03385) that joins before the last activation.

    ``(B, in_channels, D, H, W) -> (B, out_channels, D, H, W)``; where the widths differ, the short cut is 1x1x1.

    Args:
        double: Whose layers it takes over.
    """

    def __init__(self, double: DoubleConv) -> None:
        super().__init__()
        layers = list(double)
        last = len(layers) // 2 + 2  # both halves begin with convolution and normalisation
        self.convolutions = nn.Sequential(*layers[:last])
        width_in, width_out = double.widths
        self.short_cut = nn.Identity() if width_in == width_out else nn.Conv3d(width_in, width_out, 1, bias=False)
        self.activation = nn.Sequential(*layers[last:])

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y: Tensor = self.activation(self.convolutions(x) + self.short_cut(x))
        return y
