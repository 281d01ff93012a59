"""Objectives: tensors in, named scalars out."""

from rare_lightning.objectives.multi_resolution import MultiResolutionLoss
from rare_lightning.objectives.segmentation import DiceCrossEntropy

__all__ = ["DiceCrossEntropy", "MultiResolutionLoss"]
