"""Bringing images and labels down to the level grids."""

from collections.abc import Sequence
from math import log2, prod
from typing import Any, Literal

import torch
import torchio as tio
from torch import Tensor
from torch.utils.data import default_collate
from torchio.transforms.spatial_transform import SpatialTransform

from rare_lightning.data.geometry import level_affine
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.random_spacing import EXACT, RandomSpacing
from rare_lightning.data.resampling import largest_share
from rare_lightning.data.routing import FULL
from rare_lightning.data.sampling import seeded
from rare_lightning.networks.grids import Size3, block_average, pad_to_size, round_up, triple

LabelDownsampling = Literal["majority", "nearest", "corner"]


def downsample_label(label: Tensor, stride: Size3, method: LabelDownsampling = "majority") -> Tensor:
    """Bring class indices ``(B, D, H, W)`` to a level grid.

    ``majority`` takes the most frequent class of a block (the lowest of equals); ``nearest`` the voxel at the block's
    centre (for even strides the one just above it). ``corner``, the block's first voxel, shifts labels against the
    image by (stride - 1) / 2 voxels: it exists to show what the paper's published code scores against, and for nothing
    else.
    """
    if stride == (1, 1, 1):
        return label
    if method in ("nearest", "corner"):
        x, y, z = (s // 2 if method == "nearest" else 0 for s in stride)
        sx, sy, sz = stride
        return label[:, x::sx, y::sy, z::sz].contiguous()
    return largest_share(label, lambda mask: block_average(mask[None], stride)[0])


class ToLevelGrid(SpatialTransform):  # type: ignore[misc]  # TorchIO is not annotated
    """TorchIO transform: images by block average, label maps by majority, onto the grid of a level.

    The block average is the anti-aliasing filter of exactly the voxel that replaces the block, and the affine is that
    of the level grid: same corner in physical space, spacing times stride.

    Args:
        stride: Cumulative stride of the level per axis. Sizes must be multiples of it.
        label_downsampling: See :func:`downsample_label`.
    """

    def __init__(self, stride: Sequence[int], label_downsampling: LabelDownsampling = "majority", **kwargs: object):
        super().__init__(**kwargs)
        self.stride: Size3 = (stride[0], stride[1], stride[2])
        self.label_downsampling = label_downsampling
        self.args_names = ["stride", "label_downsampling"]

    def apply_transform(self, subject: tio.Subject) -> tio.Subject:
        """Replace data and affine of every image.

        Raises:
            ValueError: If a size is not a multiple of the stride.
        """
        for image in self.get_images(subject):
            if any(n % s for n, s in zip(image.spatial_shape, self.stride, strict=True)):
                raise ValueError(f"size {image.spatial_shape} is not a multiple of the level's stride {self.stride}")
            if isinstance(image, tio.LabelMap):
                image.set_data(downsample_label(image.data, self.stride, self.label_downsampling))
            else:
                image.set_data(block_average(image.data[None].float(), self.stride)[0])
            image.affine = level_affine(image.affine, self.stride)
        return subject


class LabelPyramid:
    """Labels of a batch on the grids of the levels, uint8, each made where and when it is asked for.

    All of them would take a fifth of the time of a loader of brain tumours, and heads that answer on the base grid are
    trained without.

    Args:
        base: ``(B, D, H, W)``, sizes multiples of the strides.
        strides: Cumulative stride of each level.
        label_downsampling: See :func:`downsample_label`.
        finest_stride: Of the finest grid that the labels fill.
    """

    def __init__(
        self,
        base: Tensor,
        strides: Sequence[Size3],
        label_downsampling: LabelDownsampling = "majority",
        finest_stride: Size3 = (1, 1, 1),
    ) -> None:
        self.strides = list(strides)
        self.label_downsampling = label_downsampling
        self.finest_stride = finest_stride
        self._made: dict[Size3, Tensor] = {(1, 1, 1): base}

    def __getitem__(self, level: int) -> Tensor:
        """``(B, D_l, H_l, W_l)``, on the device of the batch."""
        return self.on(self.strides[level])

    @property
    def finest(self) -> Tensor:
        """``(B, D, H, W)`` on the finest grid that the labels fill."""
        return self.on(self.finest_stride)

    def on(self, stride: Size3) -> Tensor:
        """``(B, D, H, W)`` on the grid of a stride."""
        if stride not in self._made:
            self._made[stride] = downsample_label(self.on((1, 1, 1)), stride, self.label_downsampling)
        return self._made[stride]

    def to(self, *args: Any, **kwargs: Any) -> "LabelPyramid":
        """On another device, as Lightning asks of what a batch holds."""
        base = self.on((1, 1, 1)).to(*args, **kwargs)
        return LabelPyramid(base, self.strides, self.label_downsampling, self.finest_stride)

    def pin_memory(self) -> "LabelPyramid":
        """In page-locked memory, as loaders for GPUs ask of what a batch holds."""
        base = self.on((1, 1, 1)).pin_memory()
        return LabelPyramid(base, self.strides, self.label_downsampling, self.finest_stride)


def make_pyramid(
    subject: tio.Subject,
    strides: Sequence[Size3],
    preprocessing: Preprocessing,
    random_spacing: RandomSpacing = EXACT,
    finest_level: int = 0,
) -> dict[int, Tensor]:
    """Images ``(C, D_l, H_l, W_l)`` by level from the finest on, for the cumulative stride of each.

    Each level is normalised by the ``statistics`` of its scan that the subject holds: a scan of low resolution has no
    others at inference.
    """
    images = {}
    for level, stride in list(enumerate(strides))[finest_level:]:
        if random_spacing == EXACT:
            down = subject if level == 0 else ToLevelGrid(stride, include=["image"])(subject)
            image, octaves = down.image.data.float(), 0.0
        else:  # what brings images to another spacing begins from the scan
            image, octaves = random_spacing(subject.image.data.float(), stride)
        to_next = log2(prod(strides[min(level + 1, len(strides) - 1)]) / prod(stride))
        between = min(1.0, octaves / to_next) if to_next > 0 else 0.0
        images[level] = preprocessing.of_level(image, level + between, subject["statistics"])
    return images


class PyramidCollate:
    """Collate function of the data loaders: subjects of any size to one batch of level pyramids.

    Volumes are padded at their far end, to whole voxels of the deepest level and to the largest of the batch.

    Args:
        strides: Cumulative stride of each level.
        preprocessing: Normalises the levels.
        label_downsampling: How labels reach the level grids.
        random_spacing: Draws the spacing of each level's image, for training.
    """

    def __init__(
        self,
        strides: Sequence[Size3],
        preprocessing: Preprocessing,
        label_downsampling: LabelDownsampling = "majority",
        random_spacing: RandomSpacing = EXACT,
    ) -> None:
        self.strides = list(strides)
        self.preprocessing = preprocessing
        self.label_downsampling = label_downsampling
        self.random_spacing = random_spacing

    def __call__(self, subjects: Sequence[tio.Subject]) -> dict[str, Any]:
        """Level -> ``image`` (B, C, D_l, H_l, W_l) float32 and ``label``, a :class:`LabelPyramid`, and what was noted.

        Levels are those that all subjects are seen at. Noted are ``case``, its id, for the way back ``shape``, voxels
        before padding, and ``spacing``, mm; and whether it is there ``again``, only so that processes keep step.
        """
        largest = [max(sizes) for sizes in zip(*(subject.spatial_shape for subject in subjects), strict=True)]
        size = round_up(largest, self.strides[-1])
        grids = [subject.get("grids", FULL) for subject in subjects]
        finest = max(each.level for each in grids)
        label_stride = triple(max(steps) for steps in zip(*(each.label_stride for each in grids), strict=True))
        items = []
        for subject in subjects:
            shape = subject.spatial_shape
            for part in (subject.image, subject.label):
                part.set_data(pad_to_size(part.data, size))
            with seeded(*subject.get("random_key", ()), 1):  # not the draws of the patch itself again
                images = make_pyramid(subject, self.strides, self.preprocessing, self.random_spacing, finest)
            items.append(
                {
                    "image": images,
                    # Some transforms change the type of a label map, and only when they are drawn.
                    "label": subject.label.data[0].to(torch.uint8),
                    "case": subject["case"],
                    "shape": torch.tensor(shape),
                    "again": subject.get("again", False),
                }
            )
        batch: dict[str, Any] = default_collate(items)
        batch["label"] = LabelPyramid(batch["label"], self.strides, self.label_downsampling, label_stride)
        batch["spacing"] = [subject.spacing for subject in subjects]  # no tensor: not every device has double precision
        return batch
