import torch

from rare_lightning import RAREUNet
from rare_lightning.inference.memory import KERNELS, PROBE, forward_bytes, total_memory
from rare_lightning.networks import MultiResolutionNetwork, Prediction, UNet


class Doubling(MultiResolutionNetwork):
    """Holds the image, its double and, for a moment, the double's double."""

    levels, answer_grid, coarsest_stride = (0, 1), "level", (2, 2, 2)

    def level_stride(self, level):
        return (2**level,) * 3

    def forward(self, images):
        ((level, image),) = images.items()
        double = torch.cat([image, image], dim=1)
        torch.cat([double, double], dim=1)
        return Prediction({level: double + 1}, {}, {})


def test_what_lives_at_once_is_counted():
    assert forward_bytes(Doubling(), 0, channels=3) == KERNELS * 4 * (3 + 6 + 12)
    assert forward_bytes(Doubling(), 1, channels=3) == KERNELS * 4 * (3 + 6 + 12) / 8


def test_deeper_levels_need_less_and_wider_networks_more():
    network = RAREUNet(1, 3, features=4, depth=3, levels=2)
    needed = [forward_bytes(network, level, 1) for level in network.levels]
    assert needed == sorted(needed, reverse=True)
    assert forward_bytes(RAREUNet(1, 3, features=8, depth=3, levels=2), 0, 1) > 1.5 * needed[0]
    assert forward_bytes(UNet(1, 3, features=4, depth=3, levels=2), 2, 1) > 0.9 * needed[0]
    # At least the features of the first block and the image.
    assert needed[0] > 4 * (4 + 4 + 1)
    assert next(network.parameters()).device.type == "cpu"
    assert PROBE % 8 == 0


def test_the_machine_has_memory():
    assert 2**28 < total_memory(torch.device("cpu")) < 2**50
