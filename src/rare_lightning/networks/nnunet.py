"""nnU-Net's architectures as fixed-resolution baselines, planned by its rules."""

from collections.abc import Sequence
from math import ceil
from typing import Any, Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from rare_lightning.errors import UserError
from rare_lightning.networks.base import DeepLogits, FixedResolutionNetwork
from rare_lightning.networks.blocks import MAX_WIDTH
from rare_lightning.networks.grids import Size3, cells, crop, level_stride, round_up, triple

Kind = Literal["plain", "residual"]
SMALLEST_FEATURE_MAP = 4  # voxels per axis in the bottleneck
ENCODER_BLOCKS = {"plain": (2,), "residual": (1, 3, 4, 6)}  # per stage; the last number goes on
DECODER_BLOCKS = {"plain": 2, "residual": 1}


class Topology(NamedTuple):
    """Shape of an nnU-Net.

    Attributes:
        strides: Of each down-sampling, per axis.
        kernels: Of each stage's convolutions, per axis; one more than strides.
    """

    strides: list[Size3]
    kernels: list[Size3]


def plan_topology(spacing: Sequence[float], patch_size: Sequence[int]) -> Topology:
    """Strides and kernels by nnU-Net's rules (https://doi.org/10.1038/s41592-020-01008-z, supplementary note 2).

    Every down-sampling halves the axes that still have 8 voxels and are finer than twice the finest of them. An axis is
    convolved once its spacing is within twice the finest, and in the bottleneck always.

    Args:
        spacing: Of the base grid in mm.
        patch_size: Typical input in voxels.
    """
    now, size = list(spacing), list(patch_size)
    strides: list[Size3] = []
    kernels: list[Size3] = []
    convolved = [False] * 3
    while large := [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_FEATURE_MAP]:
        finest = min(now[axis] for axis in large)
        halved = [axis for axis in large if now[axis] < 2 * finest]
        if len(halved) == 1 and size[halved[0]] < 3 * SMALLEST_FEATURE_MAP:
            break
        convolved = [done or mm < 2 * min(now) for done, mm in zip(convolved, now, strict=True)]
        kernels.append(triple(3 if done else 1 for done in convolved))
        strides.append(triple(2 if axis in halved else 1 for axis in range(3)))
        for axis in halved:
            now[axis] *= 2
            size[axis] = ceil(size[axis] / 2)
    return Topology(strides, [*kernels, (3, 3, 3)])


class NNUNet(FixedResolutionNetwork):
    """nnU-Net's PlainConvUNet or ResidualEncoderUNet, from its authors' own package, with deep supervision.

    Images smaller than the patch are padded to it with 0, as nnU-Net does: the mean of what ``zscore`` looks at.

    Args:
        in_channels: Image channels.
        out_channels: Classes, background included.
        spacing: Base spacing in mm, from the data if None (by ``rare fit``).
        patch_size: Typical input in base voxels: the training patch, or the median size of the scans; from the data if
            None (by ``rare fit``).
        features: Width of stage 0, doubling per stage up to 320; nnU-Net's own is 32.
        kind: ``plain`` or ``residual`` (ResEnc).
        levels: Highest level of images that are brought up to the base grid.
        depth: Down-samplings that the levels are defined by; nnU-Net's own follow from spacing and patch.
        strides: Per-axis stride of each of them.

    Raises:
        ValueError: If spacing or patch_size is missing, or features is not positive.
        UserError: If the package is missing.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        spacing: Sequence[float] | None = None,
        patch_size: Sequence[int] | None = None,
        features: int = 32,
        kind: Kind = "plain",
        levels: int = 3,
        depth: int = 4,
        strides: int | Sequence[Sequence[int]] = 2,
    ) -> None:
        super().__init__(levels, depth, strides)
        if spacing is None or patch_size is None:
            raise ValueError("NNUNet needs spacing (mm) and patch_size (voxels), which its topology follows from")
        if features < 1:
            raise ValueError(f"features ({features}) must be >= 1")
        topology = plan_topology(spacing, patch_size)
        self.coarsest_stride = level_stride(topology.strides, len(topology.strides))
        self.patch_size = round_up(patch_size, self.coarsest_stride)
        self._strides = topology.strides
        stages = len(topology.kernels)
        blocks = ENCODER_BLOCKS[kind]
        self.network = _architecture(kind)(
            input_channels=in_channels,
            n_stages=stages,
            features_per_stage=[min(features * 2**stage, MAX_WIDTH) for stage in range(stages)],
            conv_op=nn.Conv3d,
            kernel_sizes=topology.kernels,
            strides=[(1, 1, 1), *topology.strides],
            **{_blocks_name(kind): [*blocks, *[blocks[-1]] * stages][:stages]},
            num_classes=out_channels,
            n_conv_per_stage_decoder=[DECODER_BLOCKS[kind]] * (stages - 1),
            conv_bias=True,
            norm_op=nn.InstanceNorm3d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
            deep_supervision=True,
        )
        self.network.apply(self.network.initialize)
        if stages > 2:
            # The coarsest has no weight in nnU-Net's loss; processes that share gradients would wait for its own.
            self.network.decoder.seg_layers[0].requires_grad_(False)

    @property
    def smallest_input(self) -> Size3:
        """The patch, to which smaller images are padded."""
        return self.patch_size

    def segment(self, image: Tensor) -> tuple[Tensor, list[DeepLogits]]:
        """``(B, in_channels, D, H, W)`` of any size to logits ``(B, C, D, H, W)``, and those of deeper stages."""
        size = image.shape[2:]
        padded = round_up([max(n, p) for n, p in zip(size, self.patch_size, strict=True)], self.coarsest_stride)
        far_ends = [end for n, p in zip(size, padded, strict=True) for end in (p - n, 0)]
        answer, *deeper = self.network(F.pad(image, far_ends[::-1]))
        deep = [  # without the coarsest
            DeepLogits(stride, crop(logits, cells(size, stride)))
            for stage, logits in enumerate(deeper[:-1], start=1)
            for stride in [level_stride(self._strides, stage)]
        ]
        return crop(answer, size), deep


def _blocks_name(kind: Kind) -> str:
    return "n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage"


def _architecture(kind: Kind) -> Any:
    try:
        from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet
    except ImportError as error:
        # Not an extra: its dependencies (timm, torchvision) are not needed here, and may bring another torch.
        raise UserError(
            "NNUNet needs nnU-Net's architectures: pip install --no-deps dynamic-network-architectures"
        ) from error
    return PlainConvUNet if kind == "plain" else ResidualEncoderUNet
