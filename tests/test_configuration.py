import copy
from functools import partial

import torch

from rare_lightning import DecathlonDataModule, MultiResolutionLoss, RAREUNet, SegmentationModule
from rare_lightning.networks import MultiResolutionNetwork

NAMES = ["background", "x"]


def test_objects_are_described_by_class_path_and_arguments():
    module = SegmentationModule(
        RAREUNet(1, 2, [2, 4, 8], depth=2, levels=1), NAMES, MultiResolutionLoss(), partial(torch.optim.SGD, lr=0.1)
    )
    network = module.hparams["network"]
    assert network["class_path"] == "rare_lightning.networks.rare_unet.RAREUNet"
    assert network["init_args"]["features"] == [2, 4, 8]
    assert module.hparams["optimizer"] == {"class_path": "torch.optim.sgd.SGD", "init_args": {"lr": 0.1}}
    assert module.hparams["_instantiator"] == "lightning.pytorch.cli.instantiate_module"


class Wider(RAREUNet):
    def __init__(self, factor: int, **more: int) -> None:
        super().__init__(1, 2, 2 * factor, **more)


class Bare(MultiResolutionNetwork):
    answer_grid, levels, coarsest_stride = "base", (0,), (1, 1, 1)
    level_stride = forward = None


def test_networks_of_ones_own_are_described_without_their_help():
    network = copy.deepcopy(Wider(2, depth=2, levels=1))
    described = SegmentationModule(network, NAMES).hparams["network"]
    assert described == {"class_path": f"{__name__}.Wider", "init_args": {"factor": 2, "depth": 2, "levels": 1}}
    assert SegmentationModule(Bare(), NAMES).hparams["network"]["init_args"] == {}
    assert "network" not in SegmentationModule(Wider(2, depth=2, levels=1, residual=object()), NAMES).hparams


def test_what_cannot_be_described_is_left_to_the_default():
    module = SegmentationModule(RAREUNet(1, 2, 2, depth=2, levels=1), NAMES, optimizer=lambda p: torch.optim.SGD(p))
    assert "optimizer" not in module.hparams
    assert module.hparams["class_names"] == NAMES


def test_data_settings_are_plain_too(phantom):
    data = DecathlonDataModule(str(phantom), folds=2, strides=2)
    assert data.hparams["root"] == str(phantom)
    assert data.hparams["augmentation"] is None
