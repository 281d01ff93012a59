"""Data: Decathlon tasks in, level pyramids out."""

from rare_lightning.data.augmentation import RetainStatistics
from rare_lightning.data.datamodule import DecathlonDataModule
from rare_lightning.data.phantom import make_phantom

__all__ = ["DecathlonDataModule", "RetainStatistics", "make_phantom"]
