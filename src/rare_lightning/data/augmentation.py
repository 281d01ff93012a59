"""Augmentation of training patches that TorchIO has no transform for."""

from collections.abc import Sequence

import torch
import torchio as tio
from torch import Tensor


class RetainStatistics(tio.Transform):  # type: ignore[misc]
    """Intensity transforms for images from 0 up, such as gamma and bias fields, on normalised ones.

    Each channel is moved to begin at 0, transformed, and given back its mean and standard deviation, as normalisation
    would. Of a normalised image itself, a power would change what is far from the mean alone, and a bias field what is
    empty. nnU-Net's gamma does so too (``p_retain_stats`` in https://github.com/MIC-DKFZ/batchgeneratorsv2). What is
    as dark as anything in the patch, such as the empty space around a brain, stays as every scan has it, and does not
    count.

    Args:
        transforms: TorchIO's, applied in order, with a probability of each.
        p: Probability that any is applied.
    """

    def __init__(self, transforms: Sequence[tio.Transform], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.transforms = tio.Compose(transforms)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Transform the images ``(C, D, H, W)`` of a subject."""
        before = {name: image.data for name, image in subject.get_images_dict(intensity_only=True).items()}
        for name, data in before.items():
            subject[name].set_data(data - data.amin((1, 2, 3), keepdim=True))
        subject = self.transforms(subject)
        for name, data in before.items():
            pairs = zip(data, subject[name].data, strict=True)
            subject[name].set_data(torch.stack([_with_statistics_of(one, other) for one, other in pairs]))
        return subject


def _with_statistics_of(before: Tensor, after: Tensor) -> Tensor:
    """``(D, H, W)`` with the mean and standard deviation of before, both of what is not as dark as anything."""
    shown = before > before.min()
    if int(shown.count_nonzero()) < 2:
        return before
    scale = before[shown].std() / after[shown].std().clamp_min(1e-8)
    return torch.where(shown, (after - after[shown].mean()) * scale + before[shown].mean(), before)
