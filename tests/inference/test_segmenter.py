from itertools import permutations, product

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

import rare_lightning
from rare_lightning.errors import UserError
from rare_lightning.inference.geometry import Geometry
from rare_lightning.inference.scans import Scan
from rare_lightning.networks.grids import block_average


def labels_of(image):
    return sitk.GetArrayFromImage(image)


def same_grid(one, other):
    return all(
        getattr(one, f"Get{what}")() == getattr(other, f"Get{what}")()
        for what in ("Size", "Spacing", "Origin", "Direction")
    )


def as_scan(image):
    return Scan(labels_of(image).transpose(2, 1, 0)[None], Geometry.of(image))


@pytest.fixture
def segmenter(checkpoint):
    return rare_lightning.load(checkpoint)


def canonical(scan):
    """Give a scan the directions that networks see, so that no axis is flipped."""
    scan.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return scan


def test_a_scan_of_a_level_gets_what_the_network_says(segmenter, scan):
    array = torch.as_tensor(labels_of(canonical(scan)).transpose(2, 1, 0).copy())[None]
    for level in range(3):
        stride = (2**level,) * 3
        low = block_average(array[None], stride)[0]
        made = sitk.GetImageFromArray(low[0].numpy().transpose(2, 1, 0))
        made.SetDirection(scan.GetDirection())
        made.SetSpacing([float(s) for s in stride])
        logits = segmenter.networks[0]({level: segmenter.preprocessing.normalized(low)[None]}).logits[level]
        expected = block_average(logits.softmax(1), stride).argmax(1)[0]
        answer = segmenter(made)
        assert same_grid(answer, made)
        assert answer.GetPixelID() == sitk.sitkUInt8
        assert np.array_equal(labels_of(answer).transpose(2, 1, 0), expected.numpy())
        assert 0 < expected.float().mean() < 2


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("flips", list(product((False, True), repeat=3))[::3])
def test_a_scan_stored_in_another_order_gets_the_same_answer(segmenter, scan, order, flips):
    scan.SetSpacing((1.0, 1.3, 2.1))
    scan.SetDirection(tio.ScalarImage(tensor=torch.zeros(1, 2, 2, 2)).direction)
    stored = sitk.Flip(sitk.PermuteAxes(scan, order), flips, False)
    expected = sitk.Flip(sitk.PermuteAxes(segmenter(scan), order), flips, False)
    answer = segmenter(stored)
    assert same_grid(answer, stored)
    assert np.array_equal(labels_of(answer), labels_of(expected))


def test_paths_and_images_of_both_libraries_agree(segmenter, scan, tmp_path):
    sitk.WriteImage(scan, str(tmp_path / "scan.nii.gz"))
    by_path = segmenter(tmp_path / "scan.nii.gz")
    assert np.array_equal(labels_of(by_path), labels_of(segmenter(str(tmp_path / "scan.nii.gz"))))
    assert np.array_equal(labels_of(by_path), labels_of(segmenter(scan)))
    image = tio.ScalarImage(tmp_path / "scan.nii.gz")
    answer = segmenter(image)
    assert isinstance(answer, tio.LabelMap)
    assert np.array_equal(answer.affine, image.affine)
    assert np.array_equal(answer.numpy()[0], labels_of(by_path).transpose(2, 1, 0))


@pytest.mark.parametrize("spacing", [(0.6, 0.6, 0.6), (1, 1, 4), (2.2, 2.2, 2.2), (3, 1, 5), (9, 9, 9)])
def test_any_spacing_is_answered_on_its_grid(segmenter, scan, spacing):
    scan.SetSpacing(spacing)
    assert same_grid(segmenter(scan), scan)


def test_the_base_grid_covers_the_scan(segmenter, scan):
    scan.SetSpacing((2.0, 2.0, 3.0))
    scan.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, -1))
    prepared = segmenter.prepare(as_scan(scan), "scan")
    answer = segmenter.segment(prepared, on_base_grid=True)
    assert answer.geometry.spacing == pytest.approx((1, 1, 1))
    base = answer.geometry.stamp(answer.labels)
    # The outer corners of both grids meet.
    size = np.array(scan.GetSize()) - 0.5
    ends = [scan.TransformContinuousIndexToPhysicalPoint(p) for p in ((-0.5,) * 3, size.tolist())]
    size = np.array(base.GetSize()) - 0.5
    found = [base.TransformContinuousIndexToPhysicalPoint(p) for p in ((-0.5,) * 3, size.tolist())]
    np.testing.assert_allclose(np.sort(ends, axis=0), np.sort(found, axis=0), atol=1e-6)


def test_volumes_are_those_of_the_labels(segmenter, scan):
    answer = segmenter.segment(segmenter.prepare(as_scan(scan), "scan"))
    for value, name in enumerate(segmenter.classes[1:], start=1):
        assert answer.volumes_ml[name] == pytest.approx((answer.labels == value).sum() / 1000)


def test_an_ensemble_of_the_same_model_and_mirrors_of_mirrors(checkpoint, segmenter, scan):
    twice = rare_lightning.load([checkpoint, checkpoint])
    assert np.array_equal(labels_of(twice(scan)), labels_of(segmenter(scan)))
    mirrored = rare_lightning.load(checkpoint, mirror=True)
    flipped = sitk.GetImageFromArray(np.ascontiguousarray(labels_of(scan)[:, :, ::-1]))
    plain = sitk.GetImageFromArray(labels_of(scan))
    assert np.array_equal(labels_of(mirrored(flipped))[:, :, ::-1], labels_of(mirrored(plain)))


def test_wrong_scans_and_checkpoints_are_refused(segmenter, scan, tmp_path):
    with pytest.raises(UserError, match=r"image: has 2 channel\(s\), the model needs 1"):
        segmenter(sitk.Compose([scan, scan]))
    with pytest.raises(UserError, match=r"level \(3\) must be one of 0\.\.2"):
        segmenter(scan, level=3)
    with pytest.raises(UserError, match="too small"):
        segmenter(scan[:1, :1, :1])
    (tmp_path / "a.ckpt").write_bytes(b"other")
    for path, message in ((tmp_path / "a.ckpt", "not a checkpoint"), (tmp_path / "b.ckpt", "no such checkpoint")):
        with pytest.raises(UserError, match=message):
            rare_lightning.load(path)
