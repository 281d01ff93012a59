"""A scan in, its segmentation out: routing by voxel spacing, the network, and the way back to the scan's own grid."""

from rare_lightning.inference.prediction import PredictionModule, ScanDataset
from rare_lightning.inference.segmenter import Segmentation, Segmenter, load

__all__ = [
    "PredictionModule",
    "ScanDataset",
    "Segmentation",
    "Segmenter",
    "load",
]
