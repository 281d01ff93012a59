"""Resolution-aware 3D medical image segmentation with PyTorch Lightning."""

from rare_lightning.callbacks import TestReport, TrainingRecord
from rare_lightning.data import DecathlonDataModule, make_phantom
from rare_lightning.inference import Segmenter, load
from rare_lightning.module import SegmentationModule
from rare_lightning.networks import NNUNet, RAREUNet, UNet
from rare_lightning.objectives import MultiResolutionLoss

__version__ = "0.1.0"

__all__ = [
    "DecathlonDataModule",
    "MultiResolutionLoss",
    "NNUNet",
    "RAREUNet",
    "SegmentationModule",
    "Segmenter",
    "TestReport",
    "TrainingRecord",
    "UNet",
    "load",
    "make_phantom",
]
