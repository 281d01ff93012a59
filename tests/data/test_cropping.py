import numpy as np
import pytest
import torch

from rare_lightning.data.cropping import content_box


@pytest.fixture
def image():
    """Two channels of noise in (20, 24, 28), of which each shows something elsewhere, around it 0 and -5."""
    rng = np.random.default_rng(0)
    voxels = np.stack([np.zeros((20, 24, 28)), np.full((20, 24, 28), -5.0)]).astype(np.float32)
    voxels[0, 5:12, 9:15, 10:20] = rng.uniform(1, 2, (7, 6, 10))
    voxels[1, 6:13, 7:15, 3:20] = rng.uniform(1, 2, (7, 8, 17))
    return torch.from_numpy(voxels)


def bounds(box):
    return [(side.start, side.stop) for side in box]


def test_the_box_holds_what_any_channel_shows(image):
    assert bounds(content_box(image)) == [(5, 13), (7, 15), (3, 20)]


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_the_box_turns_with_the_scan(image, axis):
    flipped = bounds(content_box(image.flip(axis)))
    low, high = bounds(content_box(image))[axis - 1]
    assert flipped[axis - 1] == (image.shape[axis] - high, image.shape[axis] - low)


def test_what_shows_nothing_and_what_has_no_border_stay_whole(image):
    assert bounds(content_box(torch.full((1, 4, 5, 6), 7.0))) == [(0, 4), (0, 5), (0, 6)]
    noise = torch.from_numpy(np.random.default_rng(1).uniform(1, 2, (1, 4, 5, 6)))
    assert bounds(content_box(noise)) == [(0, 4), (0, 5), (0, 6)]
