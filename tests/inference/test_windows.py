from math import prod

import pytest
import torch

from rare_lightning import RAREUNet
from rare_lightning.inference.windows import fit_window, segment_level
from rare_lightning.networks import UNet
from rare_lightning.networks.grids import pad_to_size, round_up


def batch_norm_network(kind=RAREUNet, depth=2, strides=2, **options):
    torch.manual_seed(0)
    network = kind(1, 3, features=2, depth=depth, levels=1, strides=strides, normalization="batch", **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.momentum = 1.0
    for level in network.levels:  # so that the statistics are those of such images, and features do not fade
        network({level: torch.randn(2, 1, 16, 16, 16)})
    return network.eval()


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("options", [{}, {"head": "plain"}, {"kind": UNet}, {"strides": [[2, 2, 1], [2, 2, 2]]}])
@torch.inference_mode()
def test_windows_equal_the_whole_volume_away_from_their_borders(level, options):
    network = batch_norm_network(**options)
    stride = network.level_stride(level)
    image = torch.randn(1, 1, *(n // s for n, s in zip((160, 12, 8), stride, strict=True)))
    whole = segment_level(network, level, image, None)
    windowed = segment_level(network, level, image, (96, 12, 8))
    # Two windows: of 0 to 96 and 64 to 160 base voxels. An answer depends on less than 32 voxels to each side (two
    # convolutions of 3 voxels in each block at strides 1, 2 and 4, and the head).
    coarser = 160 // whole.shape[2]
    overlap = slice(64 // coarser, 96 // coarser)
    difference = (windowed - whole).abs() / whole.std()
    assert difference[:, :, overlap].max() > 1e-3
    difference[:, :, overlap] = 0
    assert difference.max() < 1e-5


@pytest.mark.parametrize("size", [(37, 20, 9), (16, 16, 16)])
@torch.inference_mode()
def test_one_window_that_holds_the_volume_is_the_padded_volume(size):
    network = batch_norm_network(depth=3)
    image = torch.randn(1, 1, *size)
    answer = segment_level(network, 0, image, (40, 24, 16))
    padded = network({0: pad_to_size(image, (40, 24, 16))}).logits[0]
    torch.testing.assert_close(answer, padded[..., : size[0], : size[1], : size[2]])


@pytest.mark.parametrize("size", [(7, 30, 9), (100, 3, 61)])
def test_fewest_windows_that_fit(size):
    multiple, smallest = (4, 4, 2), (4, 8, 2)
    whole = round_up([max(n, least) for n, least in zip(size, smallest, strict=True)], multiple)
    assert fit_window(size, multiple, smallest, prod(whole)) == whole
    for share in (0.9, 0.5, 0.2):
        window = fit_window(size, multiple, smallest, share * prod(whole))
        assert prod(window) <= share * prod(whole)
        assert all(n % m == 0 and n <= w for n, m, w in zip(window, multiple, whole, strict=True))
        assert all(n >= least for n, least in zip(window, smallest, strict=True))
    assert fit_window(size, multiple, smallest, prod(smallest)) == smallest
    with pytest.raises(ValueError, match="smallest windows have"):
        fit_window(size, multiple, smallest, 20)


def test_windows_are_no_smaller_than_whole_multiples_of_the_smallest():
    assert fit_window((200, 200, 200), (16, 16, 16), (40, 40, 40), 48**3) == (48, 48, 48)
    with pytest.raises(ValueError, match="smallest windows have 110592 voxels, more than 1000"):
        fit_window((200, 200, 200), (16, 16, 16), (40, 40, 40), 1000)


@torch.inference_mode()
def test_windows_of_one_of_the_coarsest_voxels_are_widened_so_that_they_overlap():
    network, image = batch_norm_network(depth=3), torch.randn(1, 1, 16, 16, 32)
    thin, wide = (segment_level(network, 0, image, (16, 16, n)) for n in (8, 16))
    assert torch.equal(thin, wide)
    single = image[..., :8]  # one window, and none to overlap with
    torch.testing.assert_close(segment_level(network, 0, single, (16, 16, 8)), network({0: single}).logits[0])
