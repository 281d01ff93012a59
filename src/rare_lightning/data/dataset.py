"""Datasets over cached cases: random patches for training, whole volumes for evaluation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio as tio
from torch.utils.data import Dataset

from rare_lightning.data.cache import CachedCase, as_subject
from rare_lightning.data.pyramid import LabelDownsampling, make_pyramid, pad_to_multiple, pad_to_size
from rare_lightning.networks.grids import Size3


class TrainingPatches(Dataset[dict[str, Any]]):
    """One randomly placed, augmented patch of a case per item.

    A patch that is larger than the volume is padded at its far end, as volumes are in evaluation, after augmentation:
    what lies where on the level grids, and where the volume ends, is then alike in both.

    Args:
        cases: Cached cases.
        patch_size: Base voxels per axis.
        strides: Cumulative stride of each level.
        augmentation: Label-safe TorchIO transform, or None.
        label_downsampling: How labels reach the level grids.
        patches_per_case: Items per case and epoch.
        foreground_fraction: Share of patches that contain a random voxel of a random foreground class.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        patch_size: Size3,
        strides: Sequence[Size3],
        augmentation: tio.Transform | None = None,
        label_downsampling: LabelDownsampling = "majority",
        patches_per_case: int = 1,
        foreground_fraction: float = 0.0,
    ) -> None:
        self.cases = list(cases)
        self.patch_size = patch_size
        self.strides = list(strides)
        self.augmentation = augmentation
        self.label_downsampling = label_downsampling
        self.patches_per_case = patches_per_case
        self.foreground_fraction = foreground_fraction

    def __len__(self) -> int:
        return len(self.cases) * self.patches_per_case

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Level pyramids ``image`` (C, D_l, H_l, W_l) float32 and ``label`` (D_l, H_l, W_l) uint8, and ``case``."""
        case = self.cases[index % len(self.cases)]
        window = (slice(None), *self._place(case))
        subject = as_subject(np.array(case.image[window]), np.array(case.label[window]), case.affine)
        if self.augmentation is not None:
            subject = self.augmentation(subject)
        for part in (subject.image, subject.label):
            part.set_data(pad_to_size(part.data, self.patch_size))
        images, labels = make_pyramid(subject, self.strides, self.label_downsampling)
        return {"image": images, "label": labels, "case": case.case_id}

    def _place(self, case: CachedCase) -> tuple[slice, ...]:
        """Window of the patch; the whole axis where the volume is not larger."""
        # Torch's generator, which Lightning seeds differently in every worker and process.
        lowest, highest = [0, 0, 0], [max(n - p, 0) for n, p in zip(case.shape, self.patch_size, strict=True)]
        foreground = case.foreground
        if len(foreground) and float(torch.rand(())) < self.foreground_fraction:
            classes = np.unique(foreground[:, 0])
            of_class = foreground[foreground[:, 0] == classes[int(torch.randint(len(classes), ()))]]
            voxel = of_class[int(torch.randint(len(of_class), ()))][1:].tolist()
            # Among the places that contain the voxel.
            lowest = [max(v - p + 1, 0) for v, p in zip(voxel, self.patch_size, strict=True)]
            highest = [min(v, high) for v, high in zip(voxel, highest, strict=True)]
        starts = [int(torch.randint(low, high + 1, ())) for low, high in zip(lowest, highest, strict=True)]
        return tuple(slice(start, start + p) for start, p in zip(starts, self.patch_size, strict=True))


class WholeVolumes(Dataset[dict[str, Any]]):
    """Each case whole, padded at its far end to what the network needs.

    Args:
        cases: Cached cases.
        multiple: What sizes must be multiples of.
        strides: Cumulative stride of each level.
        label_downsampling: How labels reach the level grids.
    """

    def __init__(
        self,
        cases: Sequence[CachedCase],
        multiple: Size3,
        strides: Sequence[Size3],
        label_downsampling: LabelDownsampling = "majority",
    ) -> None:
        self.cases = list(cases)
        self.multiple = multiple
        self.strides = list(strides)
        self.label_downsampling = label_downsampling

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """As training items, and ``shape`` (voxels before padding) and ``spacing`` (mm) of the base grid."""
        case = self.cases[index]
        image, label = (pad_to_multiple(np.array(array), self.multiple) for array in (case.image, case.label))
        images, labels = make_pyramid(
            as_subject(image.numpy(), label.numpy(), case.affine), self.strides, self.label_downsampling
        )
        return {
            "image": images,
            "label": labels,
            "case": case.case_id,
            "shape": torch.tensor(case.shape),
            "spacing": torch.tensor(case.spacing, dtype=torch.float64),
        }
