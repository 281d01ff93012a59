import pytest
import torch

from rare_lightning.data.pyramid import downsample_label
from rare_lightning.data.resampling import axis_weights, resample, resample_in_slabs, resample_labels
from rare_lightning.networks.grids import block_average, interpolate


@pytest.mark.parametrize("stride", [(2, 2, 2), (4, 2, 1), (8, 8, 8)])
def test_whole_ratios_are_what_level_grids_are_made_by(stride):
    volume = torch.randn(2, 16, 8, 24)
    down = resample(volume, (1, 1, 1), stride, [n // s for n, s in zip(volume.shape[1:], stride, strict=True)])
    torch.testing.assert_close(down, block_average(volume[None], stride)[0])
    up = resample(down, stride, (1, 1, 1), volume.shape[1:], order=1)
    torch.testing.assert_close(up, interpolate(down[None], stride)[0])


@pytest.mark.parametrize("stride", [(2, 2, 2), (4, 2, 1)])
def test_labels_of_whole_ratios_are_those_of_level_grids(stride):
    labels = torch.randint(0, 4, (1, 16, 8, 24), dtype=torch.uint8)
    size = [n // s for n, s in zip(labels.shape[1:], stride, strict=True)]
    assert torch.equal(resample_labels(labels, (1, 1, 1), stride, size), downsample_label(labels, stride))
    thrice = resample_labels(labels, (3, 3, 3), (1, 1, 1), [3 * n for n in labels.shape[1:]])
    assert torch.equal(thrice[:, 1::3, 1::3, 1::3], labels)


def test_the_same_grid_is_left_alone():
    volume = torch.randn(1, 5, 6, 7)
    assert resample(volume, (1.0, 2.0, 0.7), (1.0, 2.0, 0.7), (5, 6, 7)) is volume


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("new", [0.3, 0.9, 1.1, 2.7, 40.0])
def test_weights_average_and_keep_ramps(new, order):
    size = max(1, round(20 / new))
    weights = axis_weights(20, 1.0, size, new, order)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(size))
    assert (weights >= 0).all() or (order == 3 and new < 1)
    ramp = weights @ (torch.arange(20.0) + 0.5)
    centres = (torch.arange(size) + 0.5) * new
    inside = (centres > 2) & (centres < 18)
    # A coarser voxel takes whole shares of the voxels it covers: up to an eighth of a voxel off where it cuts one.
    torch.testing.assert_close(ramp[inside], centres[inside], atol=1e-4 if new < 1 else 0.125, rtol=0)


def test_cubic_weights_keep_what_a_scan_of_finer_voxels_shows():
    fine = torch.arange(120) + 0.5
    for wavelength in (40, 20, 10):  # fine voxels, of which a coarse one covers four
        coarse = torch.cos(2 * torch.pi * fine / wavelength).view(30, 4).mean(dim=1)
        exact = torch.cos(2 * torch.pi * fine / wavelength).view(40, 3).mean(dim=1)[4:-4]
        linear, cubic = (
            ((axis_weights(30, 4.0, 40, 3.0, order) @ coarse)[4:-4] - exact).square().mean() for order in (1, 3)
        )
        assert cubic < linear


@pytest.mark.parametrize("order", [1, 3])
def test_what_lies_beyond_the_end_repeats_the_last_voxel(order):
    assert axis_weights(3, 1.0, 2, 2.0, order)[1].tolist() == [0, 0, 1]
    assert axis_weights(2, 1.0, 6, 0.5, order)[-1].tolist() == [0, 1]
    assert axis_weights(1, 1.0, 3, 0.5, order).tolist() == [[1], [1], [1]]


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("size", [(11, 20, 3), (30, 4, 9), (10, 12, 8)])
def test_slabs_make_up_the_whole(size, order):
    volume = torch.randn(3, 10, 12, 8)
    new = [n * 1.0 / m for n, m in zip((10, 12, 8), size, strict=True)]
    whole = resample(volume, (1, 1, 1), new, size, order)
    slabs = list(resample_in_slabs(volume, (1, 1, 1), new, size, order, values=3 * len(volume) * size[1] * size[2]))
    assert len(slabs) > 1
    torch.testing.assert_close(torch.cat([slab for _, slab in slabs], dim=1), whole)
    assert [where.start for where, _ in slabs] == list(range(0, size[0], 3))
