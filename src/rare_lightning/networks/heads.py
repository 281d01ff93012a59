"""Heads: decoder features of a level -> logits, on the level grid or, by a `SubVoxelHead`, on the base grid."""

from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from rare_lightning.networks.blocks import Activation, Normalization, conv_block
from rare_lightning.networks.grids import Size3

HeadKind = Literal["plain", "sub_voxel"]


class SubVoxelHead(nn.Module):
    """Logits for every base voxel at the cost of the level: 1x1x1 convolution and 3D pixel shuffle.

    ``(B, F, d, h, w) -> (B, C, d * sx, h * sy, w * sz)`` for the level's stride ``(sx, sy, sz)``. A 3x3x3 block before
    lets a voxel be drawn by its neighbours too; drawing all its base voxels with 3x3x3 kernels instead would take most
    of a deep level's time and weights. Weights start repeated over the voxels of a block, so that a fresh head is a
    plain head followed by nearest-neighbour up-sampling (as ICNR does for super-resolution,
    https://arxiv.org/abs/1707.02937). At level 0 it is a plain head.

    Args:
        in_channels: Of the features.
        out_channels: Classes.
        stride: Of the level, in base voxels per axis.
        normalization: Of the 3x3x3 block.
        activation: Of the 3x3x3 block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Size3,
        normalization: Normalization = "instance",
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        self.stride = stride
        voxels = prod(stride)
        block = conv_block(in_channels, in_channels, normalization, activation) if voxels > 1 else []
        self.block = nn.Sequential(*block)
        self.conv = nn.Conv3d(in_channels, out_channels * voxels, 1)
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter.copy_(parameter[::voxels].repeat_interleave(voxels, dim=0))

    def forward(self, features: Tensor) -> Tensor:
        """Features of the level's decoder stage -> logits on the base grid."""
        x: Tensor = self.conv(self.block(features))
        sx, sy, sz = self.stride
        b, _, d, h, w = x.shape
        x = x.view(b, -1, sx, sy, sz, d, h, w).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.reshape(b, -1, d * sx, h * sy, w * sz)


def make_head(
    kind: HeadKind,
    in_channels: int,
    out_channels: int,
    stride: Size3,
    normalization: Normalization,
    activation: Activation,
) -> nn.Module:
    """Head of the level whose cumulative stride is ``stride``; ``plain``, the paper's, answers on the level grid.

    Raises:
        ValueError: If there is no such kind.
    """
    if kind == "plain":
        return nn.Conv3d(in_channels, out_channels, 1)
    if kind == "sub_voxel":
        return SubVoxelHead(in_channels, out_channels, stride, normalization, activation)
    raise ValueError(f"head must be plain or sub_voxel: {kind}")
