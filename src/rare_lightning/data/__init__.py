"""Data: Decathlon tasks in, level pyramids out."""

from rare_lightning.data.augmentation import RetainStatistics
from rare_lightning.data.datamodule import DecathlonDataModule
from rare_lightning.data.phantom import make_phantom
from rare_lightning.data.routing import Route, route

__all__ = ["DecathlonDataModule", "RetainStatistics", "Route", "make_phantom", "route"]
