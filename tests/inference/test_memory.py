import pytest
import torch

from rare_lightning import RAREUNet
from rare_lightning.inference.memory import KERNELS, PROBE, forward_bytes, memory_limits, total_memory
from rare_lightning.networks import MultiResolutionNetwork, NNUNet, Prediction, UNet


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


@pytest.mark.parametrize("strides", [2, [[2, 2, 1], *[[2, 2, 2]] * 5]])
def test_networks_deeper_than_the_probe_are_counted(strides):
    shallow, deep = (RAREUNet(1, 3, 4, depth, levels=1, strides=s) for depth, s in ((5, 2), (6, strides)))
    assert forward_bytes(deep, 0, 1) == pytest.approx(forward_bytes(shallow, 0, 1), rel=0.2)


def test_padding_to_a_large_patch_is_not_counted_for_the_voxels_of_the_probe():
    small, large = (NNUNet(1, 3, (1, 1, 1), [n] * 3, features=4, levels=1) for n in (32, 128))
    assert large.smallest_input == (128, 128, 128)
    assert forward_bytes(large, 0, 1) == pytest.approx(forward_bytes(small, 0, 1), rel=0.2)


def test_the_machine_has_memory():
    assert 2**28 < total_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("groups", "files", "limits"),
    [
        (
            "0::/job/step\n",
            {"job/step/memory.max": "max", "job/memory.max": "3000", "memory.max": "5000"},
            [3000, 5000],
        ),
        ("0::/job\n", {"job/memory.max": "max", "other/memory.max": "10"}, []),
        ("0::/\n", {"memory.max": "700"}, [700]),
        (
            "9:cpu,cpuacct:/elsewhere\n4:memory:/slurm/job_1\n0::/\n",
            {"memory/slurm/job_1/memory.limit_in_bytes": "20", "memory/memory.limit_in_bytes": "9223372036854771712"},
            [20, 9223372036854771712],
        ),
        ("4:memory:/docker/of:the/machine\n", {"memory/memory.limit_in_bytes": "40"}, [40]),
    ],
)
def test_limits_of_a_job_and_of_all_that_holds_it_are_found(tmp_path, groups, files, limits):
    assert memory_limits(tmp_path) == []
    for name, text in {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{n}": t for n, t in files.items()}}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n" if text.isalnum() else text)
    assert memory_limits(tmp_path) == limits


def test_the_smallest_limit_counts(monkeypatch):
    monkeypatch.setattr("rare_lightning.inference.memory.memory_limits", lambda: [2**62, 12345, 2**40])
    assert total_memory(torch.device("cpu")) == 12345
