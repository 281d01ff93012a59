import numpy as np
import pytest
import torch
import torchio as tio

from rare_lightning.data.cache import write_cached
from rare_lightning.data.dataset import TrainingPatches, WholeVolumes
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.task import read_task

STRIDES = [(1, 1, 1), (2, 2, 2), (4, 4, 4)]


@pytest.fixture
def cases(phantom, cache_dir):
    return [write_cached(case, Preprocessing((1.0, 1.0, 1.0)), cache_dir) for case in read_task(phantom).cases]


def find(patch, volume):
    """Where a patch lies in a volume; the first match."""
    windows = np.lib.stride_tricks.sliding_window_view(volume, patch.shape)
    return tuple(np.argwhere((windows == patch).all((-1, -2, -3)))[0])


def test_patches_are_cut_from_image_and_label_alike(cases):
    patches = TrainingPatches(cases, (16, 16, 16), STRIDES, patches_per_case=2)
    assert len(patches) == 12
    for index in (0, 7):
        item = patches[index]
        case = cases[index % 6]
        assert item["case"] == case.case_id
        x, y, z = find(item["image"][0][0].numpy(), case.image[0])
        assert np.array_equal(item["label"][0], case.label[0, x : x + 16, y : y + 16, z : z + 16])
        assert item["image"][2].shape == (1, 4, 4, 4)


def test_patches_move_about(cases):
    patches = TrainingPatches(cases, (16, 16, 16), STRIDES)
    places = {find(patches[0]["image"][0][0].numpy(), cases[0].image[0]) for _ in range(12)}
    assert len(places) > 6


def test_foreground_patches_hold_each_class_in_turn(cases):
    patches = TrainingPatches(cases, (8, 8, 8), STRIDES[:2], foreground_fraction=1.0)
    found = [set(torch.unique(patches[i % 6]["label"][0]).tolist()) - {0} for i in range(24)]
    assert all(found)
    assert set().union(*found) == {1, 2}
    blind = TrainingPatches(cases, (8, 8, 8), STRIDES[:2])
    assert not all((blind[i % 6]["label"][0] > 0).any() for i in range(24))


def test_a_patch_larger_than_the_volume_is_what_evaluation_sees(cases):
    whole = WholeVolumes(cases[:1], (32, 32, 32), STRIDES)[0]
    size = tuple(whole["image"][0].shape[1:])
    item = TrainingPatches(cases, size, STRIDES, foreground_fraction=1.0)[0]
    for level in range(3):
        assert torch.equal(item["image"][level], whole["image"][level])
        assert torch.equal(item["label"][level], whole["label"][level])


def test_augmentation_moves_image_and_label_together(cases):
    flip = tio.RandomFlip(axes=[0], flip_probability=1)
    size = tuple(n // 4 * 4 for n in cases[0].shape)  # no padding, which stays at the far end
    torch.manual_seed(3)
    plain = TrainingPatches(cases, size, STRIDES)[0]
    torch.manual_seed(3)
    flipped = TrainingPatches(cases, size, STRIDES, tio.Compose([flip]))[0]
    for level in range(3):
        torch.testing.assert_close(flipped["image"][level], plain["image"][level].flip(1))
    assert torch.equal(flipped["label"][0], plain["label"][0].flip(0))


def test_whole_volumes_are_padded_at_the_far_end(cases):
    volumes = WholeVolumes(cases, (16, 16, 16), STRIDES)
    assert len(volumes) == 6
    item = volumes[1]
    d, h, w = item["shape"].tolist()
    assert (d, h, w) == cases[1].shape
    assert all(n % 16 == 0 for n in item["image"][0].shape[1:])
    assert np.array_equal(item["image"][0][:, :d, :h, :w], cases[1].image)
    assert item["spacing"].tolist() == pytest.approx(cases[1].spacing)
