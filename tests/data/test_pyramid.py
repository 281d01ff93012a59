import pickle

import numpy as np
import pytest
import torch
import torchio as tio

from rare_lightning.data import pyramid
from rare_lightning.data.cache import as_subject
from rare_lightning.data.geometry import level_affine
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.pyramid import LabelPyramid, ToLevelGrid, downsample_label, make_pyramid
from rare_lightning.data.random_spacing import RandomSpacing
from rare_lightning.networks.grids import pad_to_size

OBLIQUE = np.array([[0.9, -0.3, 0.2, 11], [0.4, 1.1, -0.1, -7], [-0.1, 0.2, 2.9, 3], [0, 0, 0, 1]])


def world_coordinates(size, affine):
    """``(3, D, H, W)``: the position of each voxel centre in mm."""
    index = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij"))
    return torch.einsum("ij,jdhw->idhw", torch.from_numpy(affine[:3, :3]), index) + torch.from_numpy(
        affine[:3, 3]
    ).view(3, 1, 1, 1)


@pytest.mark.parametrize("stride", [(2, 2, 2), (4, 2, 1), (8, 8, 8), (3, 1, 2)])
@pytest.mark.parametrize("affine", [np.eye(4), np.diag([-1.0, 2.0, 3.0, 1.0]), OBLIQUE])
def test_level_grid_lies_where_its_affine_says(stride, affine):
    # An image of its own coordinates must still hold them after down-sampling.
    size = (24, 16, 8)
    subject = tio.Subject(image=tio.ScalarImage(tensor=world_coordinates(size, affine).float(), affine=affine))
    down = ToLevelGrid(stride)(subject).image
    expected = world_coordinates(down.spatial_shape, down.affine).float()
    torch.testing.assert_close(down.data, expected, rtol=1e-4, atol=1e-3)


def test_levels_compose():
    once = level_affine(OBLIQUE, (4, 4, 2))
    np.testing.assert_allclose(level_affine(level_affine(OBLIQUE, (2, 2, 1)), (2, 2, 2)), once)
    image = torch.randn(1, 16, 16, 16)
    subject = as_subject(image.numpy(), torch.zeros(1, 16, 16, 16, dtype=torch.uint8).numpy(), OBLIQUE)
    twice = ToLevelGrid((2, 2, 2))(ToLevelGrid((2, 2, 2))(subject))
    torch.testing.assert_close(twice.image.data, ToLevelGrid((4, 4, 4))(subject).image.data)


def test_majority_takes_the_most_frequent_class():
    label = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    label[0, :2, :2, 0] = 2  # 4 of 8 voxels, and 3 of class 1
    label[0, :2, :2, 1] = torch.tensor([[1, 1], [1, 0]])
    label[0, 2:, 2:, 2:] = 1
    down = downsample_label(label, (2, 2, 2))
    assert down.dtype == torch.uint8
    assert down.shape == (1, 2, 2, 2)
    assert down[0, 0, 0, 0] == 2
    assert down[0, 1, 1, 1] == 1
    assert down.sum() == 3


def test_labels_that_a_transform_made_floats_are_the_same():
    label = torch.randint(0, 3, (1, 8, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert torch.equal(downsample_label(label.float(), (2, 2, 2)), downsample_label(label, (2, 2, 2)).float())


def test_corner_labels_are_shifted_against_their_image():
    # A label that holds its own index: nearest takes the block's centre, corner the first voxel.
    ramp = torch.arange(16, dtype=torch.uint8).view(1, 16, 1, 1).expand(1, 16, 4, 4)
    assert downsample_label(ramp, (4, 4, 4), "nearest").flatten().tolist() == [2, 6, 10, 14]
    assert downsample_label(ramp, (4, 4, 4), "corner").flatten().tolist() == [0, 4, 8, 12]


@pytest.mark.parametrize("method", ["majority", "nearest", "corner"])
def test_labels_made_of_blocks_come_down_exactly(method):
    coarse = torch.randint(0, 4, (1, 3, 5, 2), dtype=torch.uint8)
    fine = coarse.repeat_interleave(4, 1).repeat_interleave(2, 2)
    assert torch.equal(downsample_label(fine, (4, 2, 1), method), coarse)
    assert torch.equal(downsample_label(fine, (1, 1, 1), method), fine)


def test_nearest_samples_the_centre_of_a_block_and_not_its_corner():
    label = torch.arange(9, dtype=torch.uint8).view(1, 9, 1, 1)
    assert downsample_label(label, (3, 1, 1), "nearest").flatten().tolist() == [1, 4, 7]


def test_a_sphere_stays_centred_on_every_level():
    index = torch.stack(torch.meshgrid(*[torch.arange(32.0)] * 3, indexing="ij"))
    centre = torch.tensor([15.5, 15.5, 15.5]).view(3, 1, 1, 1)
    sphere = ((index - centre).norm(dim=0) < 12).to(torch.uint8)[None]
    for stride in (2, 4, 8):
        down = downsample_label(sphere, (stride,) * 3)[0]
        middle = (torch.nonzero(down).float().mean(0) + 0.5) * stride - 0.5
        torch.testing.assert_close(middle, torch.full((3,), 15.5))


def test_sizes_that_are_no_multiple_are_refused():
    subject = tio.Subject(image=tio.ScalarImage(tensor=torch.randn(1, 5, 4, 4)))
    with pytest.raises(ValueError, match=r"\(5, 4, 4\) is not a multiple .* \(2, 2, 2\)"):
        ToLevelGrid((2, 2, 2))(subject)


def test_pyramid_has_images_of_every_level():
    subject = as_subject(np.random.rand(2, 16, 8, 8).astype("f4"), np.ones((1, 16, 8, 8), "u1"), np.eye(4))
    subject["statistics"] = torch.zeros(3, 2), torch.ones(3, 2)
    images = make_pyramid(subject, [(1, 1, 1), (2, 2, 1), (4, 4, 2)], Preprocessing((1, 1, 1)))
    assert [tuple(images[level].shape) for level in images] == [(2, 16, 8, 8), (2, 8, 4, 8), (2, 4, 2, 4)]
    assert images[0].dtype == torch.float32
    for level in images:
        torch.testing.assert_close(images[level].mean(), images[0].mean())


@pytest.mark.parametrize(("spacing", "level"), [((1, 1, 1), 0), ((2, 1, 1), 0.5), ((2, 2, 1), 1), ((2, 2, 2), 1)])
def test_statistics_between_two_levels_go_by_how_far_apart_those_are(spacing, level, monkeypatch):
    subject = as_subject(np.random.rand(1, 16, 16, 8).astype("f4"), np.ones((1, 16, 16, 8), "u1"), np.eye(4))
    subject["statistics"], seen = None, []
    monkeypatch.setattr(Preprocessing, "of_level", lambda _, image, level, statistics: seen.append(level))
    strides = [(1, 1, 1), (2, 2, 1), (2, 2, 1), (4, 4, 2)]
    monkeypatch.setattr(RandomSpacing, "draw", lambda _, stride: spacing if stride == strides[0] else stride)
    make_pyramid(subject, strides, Preprocessing((1, 1, 1)), RandomSpacing(0.5))
    assert seen == [level, 1, 2, 3]  # and what lies no deeper, or is the last, has statistics of its own


@pytest.mark.parametrize("method", ["majority", "nearest", "corner"])
def test_labels_of_a_batch_are_those_of_its_cases_made_when_asked_for(method, monkeypatch):
    base = torch.randint(0, 4, (3, 16, 8, 8), dtype=torch.uint8)
    base[1] = base[1].clamp_max(1)  # a case without some of the classes
    strides = [(1, 1, 1), (2, 2, 1), (4, 4, 2)]
    made = []
    monkeypatch.setattr(pyramid, "downsample_label", lambda *args: made.append(args[1]) or downsample_label(*args))
    labels = LabelPyramid(base, strides, method)
    assert labels[0] is base and made == []
    for batch in (labels, labels.to("cpu"), pickle.loads(pickle.dumps(labels))):
        for level, stride in enumerate(strides):
            expected = torch.cat([downsample_label(case[None], stride, method) for case in base])
            assert torch.equal(batch[level], expected)
            assert batch[level] is batch[level]
            assert batch[level].dtype == torch.uint8


def test_padding_repeats_the_edge_and_keeps_the_first_voxel_first():
    volume = torch.randn(1, 5, 8, 3)
    padded = pad_to_size(volume, (8, 8, 4))
    assert padded.shape == (1, 8, 8, 4)
    assert torch.equal(padded[:, :5, :, :3], volume)
    assert torch.equal(padded[:, 7, :, 3], volume[:, 4, :, 2])
    assert torch.equal(pad_to_size(padded, (4, 8, 4)), padded)
