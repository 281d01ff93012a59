import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

from rare_lightning.data.geometry import read_geometry
from rare_lightning.data.preprocessing import Preprocessing, median_size, median_spacing
from rare_lightning.data.task import Case
from rare_lightning.errors import UserError

OBLIQUE = (0.96, -0.28, 0.0, 0.28, 0.96, 0.0, 0.0, 0.0, 1.0)
FLIPPED = (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)
PERMUTED = (0, 0, 1.0, 1.0, 0, 0, 0, 1.0, 0)


def write_case(folder, array, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1), spacing=(1, 1, 1), name="a"):
    """An image and a label of the voxels above 50, from an array in (x, y, z) order."""
    paths = []
    for kind, data in (("image", array), ("label", (array > 50).astype(np.uint8))):
        image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
        image.SetSpacing(spacing)
        image.SetDirection(direction)
        image.SetOrigin((10, -20, 30))
        paths.append(folder / f"{name}_{kind}.nii.gz")
        sitk.WriteImage(image, paths[-1])
    return Case(name, (paths[0],), paths[1])


@pytest.fixture
def blob():
    array = np.random.default_rng(0).uniform(1, 40, (12, 14, 16)).astype(np.float32)
    array[4:8, 5:9, 6:12] = 100
    return array


def test_a_case_on_the_base_grid_is_only_normalised(tmp_path, blob):
    preprocessing = Preprocessing((1.0, 1.0, 1.0))
    subject = preprocessing.on_base_grid(write_case(tmp_path, blob, FLIPPED))
    # SimpleITK's world is left-posterior, so that these flips make right-anterior storage.
    torch.testing.assert_close(
        preprocessing.normalized(subject.image.data)[0].double(),
        torch.from_numpy((blob - blob.mean()) / blob.std(ddof=1)).double(),
        rtol=1e-4,
        atol=1e-4,
    )
    assert np.array_equal(subject.label.numpy()[0], blob > 50)
    assert subject.image.data.dtype == torch.float32
    assert subject.label.data.dtype == torch.uint8


@pytest.mark.parametrize("kind", [np.int64, np.uint64, np.float64])
def test_scans_of_64_bits_are_read(tmp_path, blob, kind):
    case = write_case(tmp_path, blob.astype(kind), PERMUTED)
    label = sitk.ReadImage(case.label)
    sitk.WriteImage(sitk.Cast(label, sitk.sitkInt64), case.label)
    subject = Preprocessing((1.0, 1.0, 1.0)).on_base_grid(case)
    assert sorted(subject.image.data.flatten().tolist()) == sorted(blob.astype(kind).flatten().tolist())
    assert subject.label.data.dtype == torch.uint8


@pytest.mark.parametrize("direction", [FLIPPED, PERMUTED, OBLIQUE])
def test_storage_order_does_not_move_the_anatomy(tmp_path, blob, direction):
    case = write_case(tmp_path, blob, direction, (1, 1.5, 2))
    subject = Preprocessing(case.geometry.canonical_spacing).on_base_grid(case)
    assert "".join(subject.image.orientation) == "RAS"
    truth = sitk.ReadImage(case.label)
    inside = np.argwhere(subject.label.numpy()[0])
    points = inside @ subject.label.affine[:3, :3].T + subject.label.affine[:3, 3]
    for right, anterior, superior in points[::17]:
        assert truth[truth.TransformPhysicalPointToIndex((-right, -anterior, superior))] == 1
    assert len(inside) == int((blob > 50).sum())


def test_resampling_reaches_the_base_spacing_and_keeps_the_volume(tmp_path, blob):
    case = write_case(tmp_path, blob, spacing=(1, 1, 2))
    subject = Preprocessing((1.0, 1.0, 1.0)).on_base_grid(case)
    assert subject.spatial_shape == (12, 14, 32)
    assert subject.spacing == pytest.approx((1, 1, 1))
    assert int(subject.label.data.sum()) == 2 * int((blob > 50).sum())


@pytest.mark.parametrize("direction", [FLIPPED, PERMUTED, OBLIQUE])
def test_resampling_does_not_move_the_anatomy_nor_cut_it_off(tmp_path, direction):
    size, spacing = (11, 13, 9), (1.3, 1.5, 2.2)
    case = write_case(tmp_path, np.zeros(size, np.float32), direction, spacing)
    image = sitk.ReadImage(case.images[0])
    index = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).reshape(3, -1).T.tolist()
    world = np.array([image.TransformIndexToPhysicalPoint(one) for one in index])
    across = (world @ [1.0, 2.0, 3.0]).reshape(size)  # an image of its own coordinates
    made = sitk.GetImageFromArray(np.ascontiguousarray(across.transpose(2, 1, 0)).astype(np.float32))
    made.CopyInformation(image)
    sitk.WriteImage(made, case.images[0])
    low, high = np.percentile(across, [20, 60])
    label = sitk.Cast((made > low) & (made < high), sitk.sitkUInt8)
    sitk.WriteImage(label, case.label)

    subject = Preprocessing((1.0, 1.0, 1.0)).on_base_grid(case)
    extent = np.multiply(case.geometry.canonical_size, case.geometry.canonical_spacing)
    assert subject.spatial_shape == tuple(np.ceil(extent))
    assert np.array_equal(subject.label.affine, subject.image.affine)
    voxels = np.stack(np.meshgrid(*map(np.arange, subject.spatial_shape), indexing="ij")).reshape(3, -1).T
    points = voxels @ subject.image.affine[:3, :3].T + subject.image.affine[:3, 3]
    expected = (points @ [-1.0, -2.0, 3.0]).reshape(subject.spatial_shape)
    inside = (slice(4, -4),) * 3
    np.testing.assert_allclose(subject.image.numpy()[0][inside], expected[inside], atol=1e-3)
    truth = (expected > low) & (expected < high)
    clear = np.minimum(np.abs(expected - low), np.abs(expected - high))[inside] > 5  # less than a voxel of the file
    assert clear.mean() > 0.3 and 0.1 < truth[inside].mean() < 0.9
    assert np.array_equal(subject.label.numpy()[0][inside][clear], truth[inside][clear])


@pytest.mark.parametrize("direction", [FLIPPED, OBLIQUE, PERMUTED])
@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.8, 1, 1.5)])
def test_empty_space_is_left_out_and_no_label_with_it(tmp_path, blob, direction, spacing):
    whole = np.pad(blob, [(7, 2), (0, 6), (4, 0)])
    case = write_case(tmp_path, whole, direction, spacing)
    preprocessing = Preprocessing((1.0, 1.0, 1.0))
    tight = Preprocessing(case.geometry.canonical_spacing).on_base_grid(case)
    assert sorted(tight.spatial_shape) == sorted(blob.shape)
    label = sitk.ReadImage(case.label)
    label[0, 0, 0] = 1  # of the whole file, where the image shows nothing
    sitk.WriteImage(label, case.label)
    subject = preprocessing.on_base_grid(case)
    assert np.array_equal(subject.label.affine, subject.image.affine)
    points = [  # labelled, in the file and on the base grid
        nib.affines.apply_affine(image.affine, np.argwhere(image.numpy()[0] > 0)).mean(axis=0)
        for image in (tio.LabelMap(case.label), subject.label)
    ]
    np.testing.assert_allclose(*points, atol=0.5)
    assert subject.label.data.sum() > 0


def test_header_rounding_between_image_and_label_is_forgiven(tmp_path, blob):
    case = write_case(tmp_path, blob)
    label = sitk.ReadImage(case.label)
    label.SetOrigin([x + 1e-5 for x in label.GetOrigin()])
    sitk.WriteImage(label, case.label)
    assert Preprocessing((2.0, 2.0, 2.0)).on_base_grid(case).spatial_shape == (6, 7, 8)


@pytest.mark.parametrize("foreground", ["nonzero", "otsu", "all"])
@pytest.mark.parametrize("normalize", ["zscore", "percentile"])
def test_statistics_come_from_the_foreground(normalize, foreground):
    rng = torch.Generator().manual_seed(0)
    data = torch.zeros(2, 10, 10, 10)
    data[:, 3:] = 500 + 50 * torch.randn(2, 7, 10, 10, generator=rng)
    mask = torch.ones(10, 10, 10, dtype=bool) if foreground == "all" else data[0] > 250
    normalized = Preprocessing((1, 1, 1), normalize, foreground).normalized(data)
    values = normalized[:, mask]
    if normalize == "zscore":
        torch.testing.assert_close(values.mean(1), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(values.std(1), torch.ones(2), atol=1e-4, rtol=0)
    else:
        assert normalized.min() == 0
        assert normalized.max() == 1


def test_a_window_keeps_the_units_of_the_scanner():
    data = torch.tensor([-1000.0, -160, 40, 240, 3000]).expand(2, 1, 1, 5)
    settings = Preprocessing((1, 1, 1), (-160, 240))
    assert torch.equal(settings.normalized(data), torch.tensor([0, 0, 0.5, 1, 1]).expand(2, 1, 1, 5))
    plain = settings.as_dict()
    assert json.loads(json.dumps(plain)) == plain  # exported models and checkpoints are compared by it
    assert Preprocessing.from_dict(plain) == settings


@pytest.mark.parametrize("window", [(240, -160), (0, 0), (0, float("inf")), (float("nan"), 1), (1,)])
def test_a_window_has_a_lower_and_an_upper_bound(window):
    with pytest.raises(ValueError, match="a window of intensities is"):
        Preprocessing((1, 1, 1), window)


@pytest.mark.parametrize("normalize", ["zscore", "percentile"])
def test_units_of_the_scanner_do_not_matter(normalize):
    data = torch.rand(1, 8, 8, 8) + 0.1
    preprocessing = Preprocessing((1, 1, 1), normalize)
    torch.testing.assert_close(
        preprocessing.normalized(data), preprocessing.normalized(data * 1.7e6), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("normalize", ["zscore", "percentile"])
@pytest.mark.parametrize("unit", [1e-9, 1e-20, 1e9])
def test_no_unit_is_too_small(normalize, unit):
    data = torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
    settings = Preprocessing((1, 1, 1), normalize)
    torch.testing.assert_close(settings.normalized(data * unit), settings.normalized(data), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("normalize", ["zscore", "percentile"])
def test_a_channel_without_contrast_becomes_zero(normalize):
    for value in (0.0, 7.0, 0.1):
        normalized = Preprocessing((1, 1, 1), normalize).normalized(torch.full((1, 4, 4, 4), value))
        assert torch.equal(normalized, torch.zeros(1, 4, 4, 4))


def test_spacing_is_read_from_headers_in_canonical_order(tmp_path, blob):
    case = write_case(tmp_path, blob, PERMUTED, (1, 2, 3))
    expected = Preprocessing((1, 2, 3)).on_base_grid(write_case(tmp_path, blob, name="b")).spacing
    assert expected == pytest.approx((1, 2, 3))
    # PERMUTED sends the second axis to x, the third to y and the first to z... as ToCanonical sees it:
    assert case.geometry.canonical_spacing == pytest.approx(
        Preprocessing(case.geometry.canonical_spacing).on_base_grid(case).spacing
    )


def test_median_spacing_is_per_axis(tmp_path, blob):
    spacings = [(1, 2, 3), (1, 5, 1), (4, 3, 2)]
    cases = tuple(write_case(tmp_path, blob, spacing=s, name=str(i)) for i, s in enumerate(spacings))
    assert median_spacing(cases) == pytest.approx((1, 3, 2))


def test_the_median_spacing_of_a_microscope_keeps_its_digits(tmp_path, blob):
    case = Case("a", (tmp_path / "a.nii.gz",), tmp_path / "a.nii.gz")
    nib.Nifti1Image(np.zeros((4, 4, 4), "f4"), np.diag([0.01235, 0.01235, 1.2, 1])).to_filename(case.label)
    assert median_spacing([case]) == (0.01235, 0.01235, 1.2)


def test_median_size_is_that_of_the_preprocessed_cases(tmp_path, blob):
    cases = [write_case(tmp_path, blob, PERMUTED, spacing=(1, 2, 3), name=str(i)) for i in range(3)]
    assert median_size(cases, (2, 2, 2)) == Preprocessing((2, 2, 2)).on_base_grid(cases[0]).spatial_shape


def test_a_broken_header_is_named(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    with pytest.raises(UserError, match=r"a\.nii\.gz: the header cannot be read"):
        read_geometry(str(tmp_path / "a.nii.gz"))
    nib.Nifti1Image(np.zeros((4, 5), "f4"), np.eye(4)).to_filename(tmp_path / "flat.nii.gz")
    with pytest.raises(UserError, match=r"flat\.nii\.gz: has 2 dimensions"):
        read_geometry(str(tmp_path / "flat.nii.gz"))
