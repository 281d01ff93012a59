"""RARE-UNet (https://arxiv.org/abs/2507.15524) in one sweep over all resolution levels."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn

from rare_lightning.networks.base import MultiResolutionNetwork, Prediction
from rare_lightning.networks.blocks import MAX_WIDTH, Activation, DoubleConv, Normalization, ResidualConv
from rare_lightning.networks.grids import Pyramid, Size3, cells, crop, level_stride, stage_strides, triple
from rare_lightning.networks.heads import HeadKind, make_head


class RAREUNet(MultiResolutionNetwork):
    """3D U-Net that a scan of level l enters through gateway l, at encoder stage l.

    All levels go through the stages they share in one growing batch: stage k runs once on levels 0..k-1, then
    gateway k's features join. On the way up, level k leaves the batch at decoder stage k through its own head. With
    normalisation per sample (``instance``, ``group``) this equals running each level on its own.

    Args:
        in_channels: Image channels.
        out_channels: Classes, background included.
        features: Width of stage 0, doubling per stage up to 320; or one width per stage, bottleneck included.
        depth: Down-samplings, so encoder stages ``0..depth - 1`` and the bottleneck.
        levels: Highest level L; 0 makes a plain U-Net. At most ``depth - 1``.
        strides: Per-axis stride of each down-sampling, see :func:`~rare_lightning.networks.grids.stage_strides`.
        normalization: ``instance``, ``group`` or ``batch`` (which mixes levels).
        activation: ``leaky_relu``, ``relu`` or ``gelu``.
        dropout: Channel dropout probability in every convolution block.
        gateway_blocks: Double convolutions in each gateway.
        head: ``sub_voxel`` answers on the base grid, ``plain`` (the paper) on the level grid.
        residual: Short cuts around all double convolutions.

    Raises:
        ValueError: If the arguments contradict each other; the message states the rule.
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
        gateway_blocks: int = 1,
        head: HeadKind = "sub_voxel",
        residual: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= levels < depth:
            raise ValueError(f"levels ({levels}) must be >= 0 and < depth ({depth}): level l enters at encoder stage l")
        if gateway_blocks < 1:
            raise ValueError(f"gateway_blocks ({gateway_blocks}) must be >= 1")
        if isinstance(features, int):
            features = [min(features * 2**k, MAX_WIDTH) for k in range(depth + 1)]
        if len(features) != depth + 1 or min(features) < 1:
            raise ValueError(
                f"features must be one width or depth + 1 = {depth + 1} widths, all >= 1: {list(features)}"
            )
        self.levels = tuple(range(levels + 1))
        self.strides = stage_strides(depth, strides)
        self.coarsest_stride = level_stride(self.strides, depth)
        self.answer_grid = "base" if head == "sub_voxel" else "level"
        # Instance norm cannot normalise a single voxel, which a tiny volume is reduced to in the bottleneck.
        self._smallest_bottleneck = 2 if normalization == "instance" else 1

        def block(width_in: int, width_out: int) -> nn.Module:
            double = DoubleConv(width_in, width_out, normalization, activation, dropout)
            return ResidualConv(double) if residual else double

        widths = list(features)
        self.encoder = nn.ModuleList(block(i, o) for i, o in zip([in_channels, *widths[:-2]], widths[:-1], strict=True))
        # An odd size keeps its last voxel, so that scans of any size can enter.
        self.pool = nn.ModuleList(nn.MaxPool3d(stride, ceil_mode=True) for stride in self.strides)
        self.bottleneck = block(widths[-2], widths[-1])
        self.upsample = nn.ModuleList(
            nn.ConvTranspose3d(widths[k + 1], widths[k], stride, stride) for k, stride in enumerate(self.strides)
        )
        self.decoder = nn.ModuleList(block(2 * width, width) for width in widths[:-1])
        self.gateways = nn.ModuleDict(
            {
                str(level): nn.Sequential(
                    block(in_channels, widths[level]),
                    *(block(widths[level], widths[level]) for _ in range(gateway_blocks - 1)),
                )
                for level in self.levels[1:]
            }
        )
        self.heads = nn.ModuleDict(
            {
                str(level): make_head(
                    head, widths[level], out_channels, self.level_stride(level), normalization, activation
                )
                for level in self.levels
            }
        )

    def level_stride(self, level: int) -> Size3:
        """Voxel size of a level in base voxels, per axis."""
        return level_stride(self.strides, level)

    def forward(self, images: Pyramid) -> Prediction:
        """Segment images of any subset of the levels.

        Args:
            images: Level -> ``(B, in_channels, D_l, H_l, W_l)`` of any size. All levels cover the same physical extent.

        Returns:
            Logits ``(B, out_channels, D, H, W)`` of each of these levels, on the base grid with ``sub_voxel`` heads,
            else on the level grid; and the features that the consistency loss compares.

        Raises:
            TypeError: If images are not given by level.
            ValueError: If a level is unknown, or an image is too small, or covers another extent than the others.
        """
        self._check(images)
        entries = sorted(images)
        counts = [images[level].shape[0] for level in entries]
        logits: Pyramid = {}
        gateway: Pyramid = {}
        encoder: Pyramid = {}

        skips: dict[int, Tensor] = {}
        x: Tensor | None = None
        for stage in range(entries[0], len(self.encoder)):
            if stage == 0:
                x = self.encoder[0](images[0])
            elif x is not None:
                x = self.encoder[stage](self.pool[stage - 1](x))
            if stage > 0 and stage in images:
                gateway[stage] = self.gateways[str(stage)](images[stage])
                if x is not None and 0 in images:
                    encoder[stage] = x[: counts[0]]
                x = gateway[stage] if x is None else torch.cat([x, gateway[stage]])
            skips[stage] = x  # type: ignore[assignment]  # the loop starts where the first level enters

        x = self.bottleneck(self.pool[-1](x))
        for stage in reversed(range(entries[0], len(self.encoder))):
            skip = skips.pop(stage)
            x = self.decoder[stage](torch.cat([skip, crop(self.upsample[stage](x), skip.shape[2:])], dim=1))
            if stage in images:
                staying = sum(count for level, count in zip(entries, counts, strict=True) if level < stage)
                logits[stage] = self.heads[str(stage)](x[staying:])
                x = x[:staying]
        return Prediction({level: logits[level] for level in entries}, gateway, encoder)

    def _check(self, images: Pyramid) -> None:
        self.refuse_other_levels(images)
        bottleneck = self.coarsest_stride
        extent: Size3 | None = None
        for level in sorted(images):
            stride, size = self.level_stride(level), tuple(images[level].shape[2:])
            covered = triple(n * s for n, s in zip(size, stride, strict=True))
            if prod(cells(covered, bottleneck)) < self._smallest_bottleneck:
                needed = tuple(whole // part + 1 for whole, part in zip(bottleneck, stride, strict=True))
                raise ValueError(
                    f"level {level} image has size {size}, which is too small: one axis must reach {needed}"
                )
            if extent is not None and covered != extent:
                raise ValueError(f"level {level} image covers {covered} base voxels, a lower level covers {extent}")
            extent = covered
