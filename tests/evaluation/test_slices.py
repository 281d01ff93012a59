import numpy as np
import pytest
import torch

from rare_lightning.errors import UserError
from rare_lightning.evaluation.slices import Slice, cut_slice, read_slices, write_slices

NAMES = ["background", "a", "b"]


def piece(level, shape=(4, 5)):
    generator = np.random.default_rng(level)
    truth, prediction = generator.integers(0, 3, size=(2, *shape)).astype(np.uint8)
    return Slice(level, f"{2**level}x1x1", generator.normal(size=shape), truth, prediction, 0.1 * level, 1.5)


def test_slices_are_read_as_they_were_written(tmp_path):
    written = {"a": [piece(0), piece(2)], "b/c": [piece(0, (7, 3)), piece(2, (7, 3))]}
    write_slices(written, NAMES, tmp_path / "slices.npz")
    for case, pieces in written.items():
        read, names = read_slices(tmp_path / "slices.npz", case)
        assert names == NAMES
        for one, other in zip(read, pieces, strict=True):
            for part in ("level", "spacing", "dice", "aspect"):
                assert getattr(one, part) == getattr(other, part)
            assert np.array_equal(one.truth, other.truth)
            assert np.array_equal(one.prediction, other.prediction)
            low, high = other.image.min(), other.image.max()
            assert one.image.dtype == np.uint8
            np.testing.assert_allclose(one.image / 255 * (high - low) + low, other.image, atol=(high - low) / 500)


def test_a_flat_image_is_black(tmp_path):
    flat = np.full((4, 5), 7.0)
    write_slices({"a": [Slice(0, "1x1x1", flat, flat, flat, np.nan, 1.0)]}, NAMES, tmp_path / "slices.npz")
    [read], _ = read_slices(tmp_path / "slices.npz", "a")
    assert not read.image.any()
    assert np.isnan(read.dice)


def test_what_holds_no_slices_of_the_case_gets_a_line(tmp_path):
    write_slices({"a": [piece(0)]}, NAMES, tmp_path / "slices.npz")
    (tmp_path / "broken.npz").write_bytes((tmp_path / "slices.npz").read_bytes()[:200])
    np.savez(tmp_path / "pickled.npz", class_names=np.array([{}], dtype=object))
    for name, case in (("slices.npz", "b"), ("broken.npz", "a"), ("pickled.npz", "a"), ("none.npz", "a")):
        with pytest.raises(UserError, match=f"{name}: no slices of {case} can be read"):
            read_slices(tmp_path / name, case)


def test_the_slice_with_most_foreground_is_cut():
    truth = torch.zeros(8, 8, 6, dtype=torch.uint8)
    truth[2:4, 2:4, 1] = 1
    truth[2:6, 2:6, 4] = 2
    image = torch.arange(3.0).expand(4, 4, 3)
    answer = truth.clone()
    answer[truth == 1] = 0
    cut = cut_slice(1, [2.0, 2.0, 2.0], image, truth, answer, [1.0, 1.0, 1.0])
    assert cut.truth.max() == 2
    assert cut.image.shape == (8, 8)
    assert (cut.image == 2).all()
    assert (cut.spacing, cut.dice) == ("2x2x2", 0.5)  # one class of two is found
    empty = torch.zeros_like(truth)
    assert (cut_slice(1, [2.0] * 3, image, empty, empty, [1.0] * 3).image == 1).all()


def test_blocks_are_drawn_where_they_lie():
    """Of 33 to 35 voxels, five blocks of eight, the last of them cut short."""
    truth = torch.zeros(35, 33, 34, dtype=torch.uint8)
    truth[10, 10, 30] = 1
    image = torch.arange(5 * 5 * 5).view(5, 5, 5).float()
    cut = cut_slice(3, [8.0] * 3, image, truth, truth, [1.0] * 3)
    assert cut.image.shape == (35, 33)
    for x, y in ((0, 0), (7, 8), (10, 10), (31, 24), (34, 32)):
        assert cut.image[x, y] == image[x // 8, y // 8, 30 // 8]
