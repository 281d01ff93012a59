"""Deterministic preprocessing of a case: canonical orientation, base spacing, normalised intensities."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from torch import Tensor

from rare_lightning.data.cropping import content_box
from rare_lightning.data.geometry import level_affine
from rare_lightning.data.resampling import covering_size, resample, resample_labels
from rare_lightning.data.routing import FULL, FinestGrids, unless_rounded
from rare_lightning.data.task import Case
from rare_lightning.networks.grids import Size3, Spacing, cells, level_spacing, repeat_blocks, round_up, triple

Normalize = Literal["zscore", "percentile"] | tuple[float, float]
Foreground = Literal["nonzero", "otsu", "all"]


@dataclass(frozen=True)
class Preprocessing:
    """What is done to every scan before it meets a network, in training and inference alike.

    Attributes:
        spacing: Base spacing in mm along the canonical (right, anterior, superior) axes.
        normalize: ``zscore`` (mean 0, standard deviation 1) or ``percentile`` (0.5th to 99.5th percentile to 0..1,
            clipped), with statistics of each channel of each case; or a window (low, high) of intensities, to 0..1 and
            clipped, for those that have a unit, as Hounsfield's.
        foreground: Voxels the statistics are taken from: ``nonzero``, ``otsu`` (above Otsu's threshold) or ``all``. A
            window needs none.

    Raises:
        ValueError: If normalize is none of these.
    """

    spacing: Spacing
    normalize: Normalize = "zscore"
    foreground: Foreground = "nonzero"

    def __post_init__(self) -> None:
        """Check the window."""
        if isinstance(self.normalize, str):
            return
        if len(self.normalize) != 2 or not -inf < self.normalize[0] < self.normalize[1] < inf:
            raise ValueError(f"a window of intensities is [low, high], the lower first: {list(self.normalize)}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as kept in checkpoints."""
        normalize = self.normalize if isinstance(self.normalize, str) else list(self.normalize)  # as JSON has it
        return {"spacing": list(self.spacing), "normalize": normalize, "foreground": self.foreground}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Back from :meth:`as_dict`."""
        normalize = values["normalize"]
        if not isinstance(normalize, str):
            normalize = tuple(normalize)
        return cls(tuple(values["spacing"]), normalize, values["foreground"])

    def on_base_grid(self, case: Case, grids: FinestGrids = FULL) -> tio.Subject:
        """:func:`read_case`, brought to the base spacing."""
        return self.to_base_grid(read_case(case), grids)

    def to_base_grid(self, subject: tio.Subject, grids: FinestGrids = FULL) -> tio.Subject:
        """Bring what :func:`read_case` has read to the base spacing, in place, as a scan to its level at inference.

        Args:
            subject: The case.
            grids: That it fills. Image and label are brought to those, and repeated over the blocks of base voxels: the
                average of a block is then what inference makes of the scan, and interpolation would blur it.
        """
        image, label = subject.image, subject.label
        spacing = image.spacing
        if not np.allclose(spacing, self.spacing, rtol=1e-3):
            size = round_up(covering_size(image.spatial_shape, spacing, self.spacing), grids.image_stride)
            for part, bring, stride in (
                (image, resample, grids.image_stride),
                (label, resample_labels, grids.label_stride),
            ):
                own = unless_rounded(spacing, level_spacing(self.spacing, stride))
                seen = bring(part.data, spacing, own, cells(size, stride))
                part.set_data(repeat_blocks(seen, stride))
            image.affine = label.affine = level_affine(image.affine, np.divide(self.spacing, spacing))
        return subject

    def shown(
        self, scan: Tensor, spacing: Sequence[float], level_spacing: Sequence[float]
    ) -> tuple[Tensor, list[float]]:
        """What a scan ``(C, D, H, W)`` shows at a level: averaged to the level's spacing, but not made finer.

        Statistics are of this. Interpolation draws the border of a brain into the empty space around it, and averaging
        takes away contrast, so that a level has statistics of its own.

        Returns:
            The scan, and its spacing in mm.
        """
        coarser = np.maximum(spacing, level_spacing).tolist()
        return resample(scan, spacing, coarser, covering_size(scan.shape[1:], spacing, coarser)), coarser

    def level_statistics(
        self, scan: Tensor, spacing: Sequence[float], strides: Sequence[Size3]
    ) -> tuple[Tensor, Tensor]:
        """Shifts and scales of a whole scan ``(C, D, H, W)`` of that spacing at each level, both ``(levels, C)``."""
        levels = [np.multiply(self.spacing, stride).tolist() for stride in strides]
        looks = isinstance(self.normalize, str)  # and is no window, which is the same for any image
        by_level = [self.statistics(self.shown(scan, spacing, level)[0] if looks else scan) for level in levels]
        shifts, scales = zip(*by_level, strict=True)
        return torch.stack(shifts), torch.stack(scales)

    def normalized(self, data: Tensor) -> Tensor:
        """Normalise ``(C, D, H, W)`` channel by channel; a channel without contrast becomes 0, but in a window."""
        return self.rescaled(data, *self.statistics(data))

    def statistics(self, data: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and scale of each channel of ``(C, D, H, W)``, both ``(C,)`` in double precision."""
        shifts, scales = zip(*map(self._channel_statistics, data), strict=True)
        return torch.tensor(shifts, dtype=torch.float64), torch.tensor(scales, dtype=torch.float64)

    def rescaled(self, data: Tensor, shift: Tensor, scale: Tensor, clip: bool = True) -> Tensor:
        """``(data - shift) / scale``, clipped to 0..1 if ``clip``, but for ``zscore``, which has no ends.

        Args:
            data: ``(C, D, H, W)``.
            shift: ``(C,)``, as ``scale``.
            scale: Of each channel.
            clip: False where the image of another level is to be made of it.
        """
        shift, scale = (values.float().view(-1, 1, 1, 1) for values in (shift, scale))
        normalized = (data - shift) / scale
        return normalized.clamp(0, 1) if clip and self.normalize != "zscore" else normalized

    def of_level_0(self, image: Tensor, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """``(C, D, H, W)`` of a scan, or a part of it, with the :meth:`level_statistics` of level 0, but unclipped."""
        shifts, scales = statistics
        return self.rescaled(image, shifts[0], scales[0], clip=False)

    def of_level(self, image: Tensor, level: float, statistics: tuple[Tensor, Tensor]) -> Tensor:
        """The image of a level ``(C, D_l, H_l, W_l)``, made of :meth:`of_level_0`.

        Statistics of a scan between two levels are taken to lie between theirs; below the last one they are its.
        """
        shifts, scales = statistics
        lower = int(level)
        upper = min(lower + 1, len(shifts) - 1)
        shift, scale = (torch.lerp(values[lower], values[upper], level - lower) for values in statistics)
        # Level 0's undone and the level's own in one.
        return self.rescaled(image, (shift - shifts[0]) / scales[0], scale / scales[0])

    def _channel_statistics(self, channel: Tensor) -> tuple[float, float]:
        if not isinstance(self.normalize, str):
            low, high = self.normalize
            return low, high - low
        values = channel[self._mask(channel)]
        if values.numel() < 2:
            values = channel.flatten()
        if values.numel() < 2:
            return float(values.sum()), 1.0
        if self.normalize == "zscore":
            # Accumulated in double: sums over millions of voxels lose digits in float32.
            shift, scale = float(values.double().mean()), float(values.double().std())
            return shift, max(scale, 1e-6 * abs(shift)) or 1.0  # less is rounding, of an even channel
        low, high = np.percentile(values.numpy(), [0.5, 99.5]).tolist()
        return low, high - low or 1.0

    def _mask(self, channel: Tensor) -> Tensor:
        if self.foreground == "nonzero":
            return channel != 0
        if self.foreground == "otsu":
            otsu = sitk.OtsuThresholdImageFilter()
            otsu.Execute(sitk.GetImageFromArray(channel.numpy()))
            return channel > float(otsu.GetThreshold())
        return torch.ones_like(channel, dtype=torch.bool)


def read_case(case: Case) -> tio.Subject:
    """A case in canonical orientation: ``image`` (float32, intensities of the file) and ``label`` (uint8).

    Without the empty space around it, but with every label, should one lie there.
    """
    # TorchIO compares affines to the last bit of a header's rounding; the integrity check has compared them in mm.
    affine = tio.ScalarImage(case.images[0]).affine
    channels = [tio.ScalarImage(path).data.float() for path in case.images]
    image = tio.ScalarImage(tensor=torch.cat(channels) if len(channels) > 1 else channels[0], affine=affine)
    label = tio.LabelMap(tensor=tio.LabelMap(case.label).data.to(torch.uint8), affine=affine)
    subject = tio.ToCanonical()(tio.Subject(image=image, label=label))
    box = content_box(torch.cat([subject.image.data, subject.label.data.float()]))
    margins = [(side.start, n - side.stop) for side, n in zip(box, subject.spatial_shape, strict=True)]
    return tio.Crop(tuple(np.ravel(margins).tolist()))(subject)


def median_spacing(cases: Sequence[Case]) -> Spacing:
    """Median over cases of the spacing in mm, per canonical axis, from their headers.

    Raises:
        UserError: If a header cannot be read.
    """
    # NIfTI keeps spacings in single precision: 1.2 mm comes as 1.2000000477.
    return triple(float(f"{mm:.6g}") for mm in np.median([case.geometry.canonical_spacing for case in cases], axis=0))


def median_size(cases: Sequence[Case], spacing: Spacing) -> Size3:
    """Median over cases of their voxels at the base spacing, per canonical axis, from their headers.

    Raises:
        UserError: If a header cannot be read.
    """
    extents = [np.multiply(case.geometry.canonical_size, case.geometry.canonical_spacing) for case in cases]
    return triple(np.round(np.median(extents, axis=0) / spacing).astype(int).tolist())
