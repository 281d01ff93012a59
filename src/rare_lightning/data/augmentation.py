"""Augmentation of training patches that TorchIO has no transform for."""

from collections.abc import Sequence

import torchio as tio


class RetainStatistics(tio.Transform):  # type: ignore[misc]
    """Intensity transforms for images from 0 up, such as gamma and bias fields, on normalised ones.

    Each channel is moved to begin at 0, transformed, and given back its mean and standard deviation, as normalisation
    would. Of a normalised image itself, a power would change what is far from the mean alone, and a bias field what is
    empty, which every scan has as constant. nnU-Net's gamma does the same (``p_retain_stats`` in
    https://github.com/MIC-DKFZ/batchgeneratorsv2).

    Args:
        transforms: TorchIO's, applied in order, with a probability of each.
        p: Probability that any is applied.
    """

    def __init__(self, transforms: Sequence[tio.Transform], p: float = 1.0) -> None:
        super().__init__(p=p)
        self.transforms = tio.Compose(transforms)

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Transform the images ``(C, D, H, W)`` of a subject."""
        axes = (1, 2, 3)
        before = {name: image.data for name, image in subject.get_images_dict(intensity_only=True).items()}
        for name, data in before.items():
            subject[name].set_data(data - data.amin(axes, keepdim=True))
        subject = self.transforms(subject)
        for name, data in before.items():
            image = subject[name].data
            scale = data.std(axes, keepdim=True) / image.std(axes, keepdim=True).clamp_min(1e-8)
            subject[name].set_data((image - image.mean(axes, keepdim=True)) * scale + data.mean(axes, keepdim=True))
        return subject
