"""Which mirror images of a scan a network knows from its training, and so may be asked about."""

from itertools import combinations
from typing import Any

import torch
import torchio as tio


def flipped_axes(augmentation: Any) -> list[int]:
    """Axes that training flipped.

    Args:
        augmentation: Of a checkpoint's data settings: class paths and arguments of transforms, that may hold others.
    """
    if isinstance(augmentation, list):
        return sorted({axis for part in augmentation for axis in flipped_axes(part)})
    if not isinstance(augmentation, dict):
        return []
    if str(augmentation.get("class_path")).rpartition(".")[2] != "RandomFlip":
        return flipped_axes(list(augmentation.values()))
    arguments = augmentation.get("init_args", {})
    if arguments.get("p", 1) == 0 or arguments.get("flip_probability", 1) == 0:
        return []
    axes = arguments.get("axes", 0)
    axes = axes if isinstance(axes, (list, tuple)) else [axes]
    canonical = tio.ScalarImage(tensor=torch.zeros(1, 1, 1, 1))  # knows the names of axes, as in training
    return sorted({canonical.axis_name_to_index(axis) % 3 if isinstance(axis, str) else int(axis) for axis in axes})


def mirror_images(axes: list[int]) -> list[tuple[int, ...]]:
    """Dimensions of ``(B, C, D, H, W)`` to flip for each mirror image, the scan itself first."""
    return [tuple(axis + 2 for axis in some) for n in range(len(axes) + 1) for some in combinations(axes, n)]
