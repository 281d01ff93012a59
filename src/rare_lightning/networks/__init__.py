"""Networks: plain ``nn.Module``, pyramids in, :class:`Prediction` out. No Lightning, no files."""

from rare_lightning.networks.base import DeepLogits, FixedResolutionNetwork, MultiResolutionNetwork, Prediction
from rare_lightning.networks.grids import Pyramid
from rare_lightning.networks.nnunet import NNUNet
from rare_lightning.networks.rare_unet import RAREUNet
from rare_lightning.networks.unet import UNet

__all__ = [
    "DeepLogits",
    "FixedResolutionNetwork",
    "MultiResolutionNetwork",
    "NNUNet",
    "Prediction",
    "Pyramid",
    "RAREUNet",
    "UNet",
]
