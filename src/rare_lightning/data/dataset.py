"""Datasets over cached cases: random patches for training, whole volumes for evaluation."""

from collections.abc import Sequence

import numpy as np
import torch
import torchio as tio
from torch.utils.data import Dataset

from rare_lightning.data.cache import CachedCase, as_subject
from rare_lightning.data.geometry import format_spacing, level_affine
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.routing import FULL, FinestGrids
from rare_lightning.data.sampling import seeded
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import Size3, block_average, pad_to_size, repeat_blocks


class NormalizedCases:
    """Cached cases, cut and normalised.

    Args:
        cases: Cached cases.
        preprocessing: Normalises them.
        grids: That each fills; those of level 0 by default.
    """

    def __init__(
        self, cases: Sequence[CachedCase], preprocessing: Preprocessing, grids: Sequence[FinestGrids] | None = None
    ) -> None:
        self.cases = list(cases)
        self.preprocessing = preprocessing
        self.grids = [FULL] * len(self.cases) if grids is None else list(grids)

    def __len__(self) -> int:
        return len(self.cases)

    def cut(self, index: int, window: Sequence[slice] = ()) -> tio.Subject:
        """A window of a case, copied into memory; the whole case by default.

        Returns:
            ``image`` (C, D, H, W) as level 0 sees it, ``label`` (1, D, H, W), ``case``, its ``statistics`` and
            ``grids``.
        """
        case, where = self.cases[index], (slice(None), *window)
        statistics = case.statistics
        image = self.preprocessing.of_level_0(torch.from_numpy(np.array(case.image[where])), statistics)
        subject = as_subject(image, np.array(case.label[where]), case.affine)
        subject["case"] = case.case_id
        subject["statistics"] = statistics
        subject["grids"] = self.grids[index]
        return subject


class TrainingPatches(Dataset[tio.Subject]):
    """One randomly placed, augmented patch of a case per item.

    An item follows from the seed and its index alone. Indices go on beyond the length of the set, once around for each
    epoch: the same case, and another patch of it.

    A patch that is larger than the volume is padded at its far end, as volumes are in evaluation, after augmentation:
    what lies where on the level grids, and where the volume ends, is then alike in both.

    Args:
        cases: What patches are cut from.
        patch_size: Base voxels per axis; None for whole volumes.
        augmentation: Label-safe TorchIO transform, or None.
        patches_per_case: Items per case and epoch.
        foreground_fraction: Share of patches that contain a random voxel of a random foreground class.
        seed: Of places and augmentation.
    """

    def __init__(
        self,
        cases: NormalizedCases,
        patch_size: Size3 | None = None,
        augmentation: tio.Transform | None = None,
        patches_per_case: int = 1,
        foreground_fraction: float = 0.0,
        seed: int = 0,
    ) -> None:
        self.cases = cases
        self.patch_size = patch_size
        self.augmentation = augmentation
        self.patches_per_case = patches_per_case
        self.foreground_fraction = foreground_fraction
        self.seed = seed

    def __len__(self) -> int:
        return len(self.cases) * self.patches_per_case

    def __getitem__(self, index: int) -> tio.Subject:
        """``image`` (C, D, H, W), ``label`` (1, D, H, W), ``case``, and ``random_key`` for draws that come later."""
        case = index % len(self.cases)
        with seeded(self.seed, index):
            subject = self.cases.cut(case, self._place(case, self.patch_size) if self.patch_size else ())
            if self.augmentation is not None:
                subject = self._augmented(subject, self.augmentation)
        subject["random_key"] = (self.seed, index)
        if self.patch_size:
            for part in (subject.image, subject.label):
                part.set_data(pad_to_size(part.data, self.patch_size))
        return subject

    def _augmented(self, subject: tio.Subject, augmentation: tio.Transform) -> tio.Subject:
        """Augmented on the grid that the label fills: turned blocks of a coarser one would fill no block wholly."""
        grids, affine = subject["grids"], subject.image.affine
        if grids != FULL:
            sx, sy, sz = grids.label_stride
            for part in (subject.image, subject.label):
                part.set_data(part.data[:, ::sx, ::sy, ::sz])
                part.affine = level_affine(affine, grids.label_stride)
        spacing = subject.spacing
        subject = augmentation(subject)
        if not np.allclose(subject.spacing, spacing, rtol=1e-3):
            raise UserError(
                f"data.augmentation changes the spacing from {format_spacing(spacing)} to "
                f"{format_spacing(subject.spacing)} mm, which tells the levels apart: use data.random_spacing"
            )
        if grids != FULL:
            for part in (subject.image, subject.label):
                part.set_data(repeat_blocks(part.data, grids.label_stride))
                part.affine = affine
            seen = block_average(subject.image.data[None].float(), grids.image_stride)[0]
            subject.image.set_data(repeat_blocks(seen, grids.image_stride))
        return subject

    def _place(self, index: int, patch_size: Size3) -> tuple[slice, ...]:
        """Window of the patch; the whole axis where the volume is not larger.

        It begins where a voxel of the finest grid that the scan fills does, or blocks would hold parts of several.
        """
        case, stride = self.cases.cases[index], self.cases.grids[index].image_stride
        lowest, highest = [0, 0, 0], [max(n - p, 0) for n, p in zip(case.shape, patch_size, strict=True)]
        foreground = case.foreground
        if len(foreground) and float(torch.rand(())) < self.foreground_fraction:
            classes = np.unique(foreground[:, 0])
            of_class = foreground[foreground[:, 0] == classes[int(torch.randint(len(classes), ()))]]
            voxel = of_class[int(torch.randint(len(of_class), ()))][1:].tolist()
            # Among the places that contain the voxel.
            lowest = [max(v - p + 1, 0) for v, p in zip(voxel, patch_size, strict=True)]
            highest = [min(v, high) for v, high in zip(voxel, highest, strict=True)]
        starts = [
            s * int(torch.randint(-(-low // s), high // s + 1, ()))
            for low, high, s in zip(lowest, highest, stride, strict=True)
        ]
        return tuple(slice(start, start + p) for start, p in zip(starts, patch_size, strict=True))


class WholeVolumes(Dataset[tio.Subject]):
    """Each case whole, as training without patches and augmentation would see it; then the first ones again.

    Args:
        cases: To be seen whole.
    """

    def __init__(self, cases: NormalizedCases) -> None:
        self.cases = cases

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> tio.Subject:
        """``image`` (C, D, H, W), ``label`` (1, D, H, W), ``case``, and ``again`` if the index is beyond the set."""
        subject = self.cases.cut(index % len(self.cases))
        subject["again"] = index >= len(self.cases)
        return subject
