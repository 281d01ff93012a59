from math import log2

import numpy as np
import pytest
import torch
import torchio as tio

from rare_lightning.data.cache import write_cached
from rare_lightning.data.dataset import NormalizedCases, TrainingPatches, WholeVolumes
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.pyramid import PyramidCollate
from rare_lightning.data.resampling import resample
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import block_average, interpolate

STRIDES = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]
SETTINGS = Preprocessing((1.0, 1.0, 1.0))


@pytest.fixture
def cases(phantom, cache_dir):
    return NormalizedCases(
        [write_cached(case, SETTINGS, STRIDES, cache_dir) for case in read_task(phantom).cases], SETTINGS
    )


def volume(cases, index):
    """A whole image as level 0 sees it."""
    return SETTINGS.normalized(torch.from_numpy(np.array(cases.cases[index].image))).numpy()


def find(patch, volume):
    """Where a patch lies in a volume; the first match."""
    windows = np.lib.stride_tricks.sliding_window_view(volume, patch.shape)
    return tuple(np.argwhere((windows == patch).all((-1, -2, -3)))[0])


def test_patches_are_cut_from_image_and_label_alike(cases):
    patches = TrainingPatches(cases, (16, 16, 16), patches_per_case=2)
    assert len(patches) == 12
    for index in (0, 7):
        item = patches[index]
        case = cases.cases[index % 6]
        assert item["case"] == case.case_id
        x, y, z = find(item.image.numpy()[0], volume(cases, index % 6)[0])
        assert np.array_equal(item.label.numpy()[0], case.label[0, x : x + 16, y : y + 16, z : z + 16])


def test_patches_move_about(cases):
    patches = TrainingPatches(cases, (16, 16, 16))
    whole = volume(cases, 0)[0]
    places = {find(patches[i].image.numpy()[0], whole) for i in range(0, 72, 6)}
    assert len(places) > 6


def test_foreground_patches_hold_each_class_in_turn(cases):
    patches = TrainingPatches(cases, (8, 8, 8), foreground_fraction=1.0)
    found = [set(np.unique(patches[i].label.numpy()).tolist()) - {0} for i in range(24)]
    assert all(found)
    assert set().union(*found) == {1, 2}
    blind = TrainingPatches(cases, (8, 8, 8))
    assert not all((blind[i].label.numpy() > 0).any() for i in range(24))


def test_a_patch_larger_than_the_volume_is_what_evaluation_sees(cases):
    collate = PyramidCollate(STRIDES, preprocessing=SETTINGS)
    size = tuple(-(-n // 4) * 4 for n in cases.cases[0].shape)
    whole = collate([WholeVolumes(cases)[0]])
    for patches in (TrainingPatches(cases), TrainingPatches(cases, size, foreground_fraction=1.0)):
        batch = collate([patches[0]])
        for level in range(3):
            assert torch.equal(batch["image"][level], whole["image"][level])
            assert torch.equal(batch["label"][level], whole["label"][level])


def test_augmentation_moves_image_and_label_together(cases):
    flip = tio.RandomFlip(axes=[0], flip_probability=1)
    plain, flipped = TrainingPatches(cases)[0], TrainingPatches(cases, augmentation=tio.Compose([flip]))[0]
    assert np.array_equal(flipped.image.numpy(), plain.image.numpy()[:, ::-1])
    assert np.array_equal(flipped.label.numpy(), plain.label.numpy()[:, ::-1])


def test_augmentation_that_changes_the_spacing_is_refused(cases):
    with pytest.raises(UserError, match=r"data\.augmentation changes the spacing from 1x1x1 to 2x2x2 mm"):
        TrainingPatches(cases, augmentation=tio.Resample(2))[0]


def test_a_batch_is_padded_at_the_far_end_to_its_largest_volume(cases):
    volumes = WholeVolumes(cases)
    assert len(volumes) == 6
    batch = PyramidCollate(STRIDES, SETTINGS)([volumes[1], volumes[2]])
    largest = np.max([cases.cases[1].shape, cases.cases[2].shape], axis=0)
    assert all(
        n % 4 == 0 and 0 <= n - needed < 4 for n, needed in zip(batch["image"][0].shape[2:], largest, strict=True)
    )
    for row, case in enumerate(cases.cases[1:3]):
        assert batch["case"][row] == case.case_id
        d, h, w = batch["shape"][row].tolist()
        assert (d, h, w) == case.shape
        assert np.array_equal(batch["image"][0][row, :, :d, :h, :w], volume(cases, row + 1))
        assert (batch["label"][0][row, d:] == batch["label"][0][row, d - 1]).all()
        assert batch["spacing"][row] == case.spacing  # numbers, where some devices hold no double precision


@pytest.mark.parametrize("normalize", ["zscore", "percentile", (-20.0, 30.0)])
@pytest.mark.parametrize("foreground", ["nonzero", "all"])
def test_a_level_has_the_intensities_of_the_whole_scan_at_that_resolution(cases, normalize, foreground):
    settings = Preprocessing((1.0, 1.0, 1.0), normalize, foreground)
    d, h, w = (n // 4 * 4 for n in cases.cases[0].shape)
    image = torch.from_numpy(np.array(cases.cases[0].image))[:, :d, :h, :w]
    image[:, :7] = 0  # the space around a brain, whose border no block keeps apart
    statistics = settings.level_statistics(image, (1, 1, 1), STRIDES)
    whole = settings.of_level_0(image, statistics)
    for level, stride in enumerate(STRIDES):
        expected = settings.normalized(block_average(image[None], stride)[0])
        found = settings.of_level(block_average(whole[None], stride)[0], level, statistics)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    part = settings.of_level_0(image[:, 8:16, 8:16, 8:16], statistics)
    assert torch.equal(part, whole[:, 8:16, 8:16, 8:16])


def test_a_scan_between_two_levels_has_intensities_between_theirs():
    generator = torch.Generator().manual_seed(0)
    octaves = [torch.randn(1, 1, *3 * (48 // k,), generator=generator) * k**0.5 for k in (2, 4, 8, 16)]
    image = sum(interpolate(octave, 3 * (48 // octave.shape[-1],))[0] for octave in octaves)  # detail of every size
    settings = Preprocessing((1.0, 1.0, 1.0), foreground="all")
    statistics = settings.level_statistics(image, (1, 1, 1), STRIDES)
    scan = resample(image, (1, 1, 1), (3, 3, 3), (16, 16, 16))
    started = settings.of_level_0(scan, statistics)
    finer, between, coarser = (settings.of_level(started, level, statistics) for level in (1, log2(3), 2))
    expected = settings.normalized(scan)
    off = [float((found - expected).abs().mean()) for found in (finer, between, coarser)]
    assert off[1] < 0.2 * min(off[0], off[2])
    assert torch.equal(coarser, settings.of_level(started, 2.6, statistics))
