"""Resolution-aware 3D medical image segmentation with PyTorch Lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOMES = {
    "callbacks": ("TestReport", "TrainingRecord"),
    "data": ("DecathlonDataModule", "make_phantom"),
    "inference": ("Segmenter", "load"),
    "module": ("SegmentationModule",),
    "networks": ("NNUNet", "RAREUNet", "UNet"),
    "objectives": ("MultiResolutionLoss",),
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, when it is: PyTorch and Lightning take seconds, which ``rare --help`` need not wait."""
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is not None:
        return getattr(import_module(f"{__name__}.{home}"), name)
    try:
        return import_module(f"{__name__}.{name}")  # networks and the like, as after an import of all
    except ModuleNotFoundError as error:
        if error.name != f"{__name__}.{name}":
            raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*globals(), *__all__]
