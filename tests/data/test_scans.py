import gzip

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from rare_lightning.data.geometry import Geometry
from rare_lightning.data.scans import ScanFiles, find_scans, read_scan, write_array
from rare_lightning.data.voxels import header_problem
from rare_lightning.errors import UserError


@pytest.fixture
def image():
    array = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype("i2")
    made = sitk.GetImageFromArray(array)
    made.SetSpacing((0.5, 1.25, 3.0))
    made.SetOrigin((-12.5, 3.0, 40.0))
    made.SetDirection((0.0, -1.0, 0.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0))
    return made


def write(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))
    return path


def write_dicom(image, folder, shift=(0.0, 0.0, 0.0)):
    """A file per slice, each shifted against the one before it."""
    folder.mkdir()
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    direction = image.GetDirection()
    for i in range(image.GetDepth()):
        piece = image[:, :, i]
        tags = {
            "0008|0060": "MR",
            "0020|000e": "1.2.826.0.1.3680043.2.1125.1",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.2",
            "0020|0013": str(i),
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.3.{i}",
            "0020|0032": "\\".join(map(str, image.TransformIndexToPhysicalPoint((0, 0, i)) + i * np.array(shift))),
            "0020|0037": "\\".join(str(direction[k]) for k in (0, 3, 6, 1, 4, 7)),
            "0018|0050": str(image.GetSpacing()[2]),
        }
        for key, value in tags.items():
            piece.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{i}.dcm"))
        writer.Execute(piece)
    return folder


def names(*inputs):
    return [scan.name for scan in find_scans([str(path) for path in inputs])]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha", ".mhd", ".nrrd", ".nhdr"])
def test_every_format_gives_the_same_scan_and_takes_an_answer_back(image, suffix, tmp_path):
    path = write(image, tmp_path / f"scan{suffix}")
    scan = read_scan(find_scans([str(path)])[0])
    assert np.array_equal(scan.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(scan.geometry.affine, Geometry.of(image).affine, atol=1e-6)
    labels = (scan.array[0] > 500).astype("u1")
    (tmp_path / "out").mkdir()
    write_array(labels, scan, tmp_path / "out" / f"scan{suffix}")
    back = sitk.ReadImage(str(tmp_path / "out" / f"scan{suffix}"))
    assert back.GetPixelID() == sitk.sitkUInt8
    assert np.array_equal(sitk.GetArrayFromImage(back).transpose(2, 1, 0), labels)
    assert Geometry.of(back) == Geometry.of(sitk.ReadImage(str(path)))
    assert not [p for p in (tmp_path / "out").iterdir() if p.name.startswith(".")]


def test_a_dicom_series_is_a_scan(image, tmp_path):
    folder = write_dicom(image, tmp_path / "series")
    (found,) = find_scans([str(folder)])
    assert (found.name, found.suffix) == ("series", ".nii.gz")
    scan = read_scan(found)
    assert np.array_equal(scan.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    np.testing.assert_allclose(scan.geometry.affine, Geometry.of(image).affine, atol=1e-4)
    assert names(tmp_path) == ["series"]


def test_sform_and_qform_stay_to_the_last_bit(tmp_path):
    affine = np.diag([-0.7, 0.9, 2.2, 1.0])
    nifti = nib.Nifti1Image(np.ones((4, 5, 6), "f4"), affine)
    nifti.set_qform(np.diag([0.7, -0.9, 2.2, 1.0]), 1)
    nifti.set_sform(affine, 4)
    nifti.to_filename(tmp_path / "a.nii.gz")
    scan = read_scan(find_scans([str(tmp_path / "a.nii.gz")])[0])
    write_array(np.ones((4, 5, 6), "u1"), scan, tmp_path / "b.nii.gz")
    one, other = (nib.load(tmp_path / f"{name}.nii.gz").header for name in "ab")
    for part in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x", "pixdim"):
        assert np.array_equal(one[part], other[part])


def test_voxels_may_be_given_in_micrometres(image, tmp_path):
    nifti = nib.load(write(image, tmp_path / "a.nii"))
    nifti = nib.Nifti1Image(nifti.get_fdata(), nifti.affine @ np.diag([1000, 1000, 1000, 1]))
    nifti.header.set_xyzt_units("micron")
    nifti.to_filename(tmp_path / "a.nii")
    assert read_scan(find_scans([str(tmp_path / "a.nii")])[0]).geometry.spacing == pytest.approx(image.GetSpacing())


def test_channels_come_from_4d_files_vectors_and_numbered_files(image, tmp_path):
    second = image + 1
    write(image, tmp_path / "one" / "a_0000.nii.gz")
    write(second, tmp_path / "one" / "a_0001.nii.gz")
    write(sitk.JoinSeries([image, second]), tmp_path / "four" / "a.nii.gz")
    write(sitk.Compose([image, second]), tmp_path / "vector" / "a.nrrd")
    scans = [read_scan(find_scans([str(tmp_path / name)])[0]) for name in ("one", "four", "vector")]
    for scan in scans:
        assert scan.array.shape == (2, 7, 6, 5)
        assert np.array_equal(scan.array, scans[0].array)
    (tmp_path / "list.csv").write_text("image,image2,image3\none/a_0000.nii.gz,one/a_0001.nii.gz,\n")
    (listed,) = find_scans([str(tmp_path / "list.csv")])  # of three columns, the last unused
    assert np.array_equal(read_scan(listed).array, scans[0].array)
    write_dicom(second, tmp_path / "series")
    (tmp_path / "mixed.csv").write_text("image,image2\none/a_0000.nii.gz,series\n")
    assert [scan.name for scan in find_scans([str(tmp_path / "mixed.csv")])] == ["a_0000"]
    files = [str(tmp_path / "one" / f"a_000{i}.nii.gz") for i in (1, 0)]
    for inputs in ([str(tmp_path / "one" / "*.nii.gz")], files, [str(tmp_path / "one"), *files]):
        assert find_scans(inputs) == [ScanFiles("a", listed.paths)]


def test_a_folder_may_hold_files_and_dicom_folders(image, tmp_path):
    write(image, tmp_path / "a.mha")
    write_dicom(image, tmp_path / "series")
    assert names(tmp_path) == ["a", "series"]


def test_scans_are_found_in_folders_patterns_and_lists(image, tmp_path):
    for name in ("b.nii.gz", "a.mha", "c_0003.nii.gz"):
        write(image, tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "._b.nii.gz").write_bytes(b"what macOS leaves")
    assert names(tmp_path) == ["a", "b", "c_0003"]
    assert names(tmp_path / "*.mha", tmp_path / "b.nii.gz", tmp_path / "b.nii.gz") == ["a", "b"]


def test_what_cannot_be_found_is_said(image, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 40)
    write(image, tmp_path / "x" / "a.nii.gz")
    write(image, tmp_path / "y" / "a.mha")
    write(image, tmp_path / "z" / "x" / "a.mha")
    (tmp_path / "list.csv").write_text("scan\nx/a.nii.gz\n")
    (tmp_path / "blank.csv").write_text("image,image2,image3\nx/a.nii.gz,,y/a.mha\n")
    (tmp_path / "notes.txt").write_text("no image")
    for inputs, message in (
        (["empty"], "holds no images"),
        (["dicom"], "no DICOM series that can be read"),
        (["nothing"], "no such file, folder or pattern"),
        (["x", "z/x"], "would both be answered as x_a"),
        (["list.csv"], r"needs the header image\[,image2,...\]"),
        (["blank.csv"], "blank.csv: x/a.nii.gz,,y/a.mha has a blank between its channels"),
        (["notes.txt"], "not an image of a known format"),
    ):
        with pytest.raises(UserError, match=message):
            find_scans([str(tmp_path / name) for name in inputs])


def test_what_cannot_be_read_is_said(image, tmp_path):
    whole = gzip.decompress(write(image, tmp_path / "a.nii.gz").read_bytes())
    (tmp_path / "cut.nii.gz").write_bytes(gzip.compress(whole)[:-40])
    (tmp_path / "short.nii").write_bytes(whole[:-40])
    (tmp_path / "junk.nrrd").write_bytes(b"junk")
    (tmp_path / "cut.nrrd").write_bytes(write(image, tmp_path / "a.nrrd").read_bytes()[:-40])
    nib.Nifti2Image(np.ones((3, 4, 5), "f4"), np.eye(4)).to_filename(tmp_path / "two.nii")
    write(image[:, :, 0], tmp_path / "flat.mha")
    floating = sitk.GetArrayFromImage(image).astype("f4")
    phases = floating.astype(np.complex64)
    nib.Nifti1Image(phases, np.eye(4)).to_filename(tmp_path / "complex.nii.gz")
    write(sitk.GetImageFromArray(phases), tmp_path / "complex.nrrd")
    colours = np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.Nifti1Image(colours, np.eye(4)).to_filename(tmp_path / "colours.nii.gz")
    floating[0, 0, 0] = np.nan
    write(sitk.GetImageFromArray(floating), tmp_path / "nan.nii.gz")
    other = sitk.Image(image)
    other.SetOrigin((0, 0, 0))
    write(other, tmp_path / "b.nii.gz")
    (tmp_path / "sizes.nii").write_bytes(whole[:88] + np.float32(2).tobytes() + whole[92:])  # pixdim of the last axis
    for files, message in (
        (["cut.nii.gz"], "cannot be read"),
        (["short.nii"], "cannot be read"),
        (["junk.nrrd"], "cannot be read"),
        (["cut.nrrd"], r"cannot be read \(\[nrrd\] .*: fread got only"),
        (["two.nii"], "is of NIfTI-2, which ITK does not read"),
        (["flat.mha"], "has 2 dimensions"),
        (["complex.nii.gz"], "its voxels are complex; a number for each is needed"),
        (["complex.nrrd"], "its voxels are complex; a number for each is needed"),
        (["colours.nii.gz"], "its voxels are colours; a number for each is needed"),
        (["nan.nii.gz"], "NaN or infinite"),
        (["a.nii.gz", "nan.nii.gz"], r"/nan\.nii\.gz: holds NaN"),
        (["gone.nii.gz"], "no such file"),
        (["sizes.nii"], "its voxels are of 0.5x1.25x2 by pixdim and of 0.5x1.25x3 by its affine"),
        (["a.nii.gz", "b.nii.gz"], "lies on another grid"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            read_scan(ScanFiles("x", tuple(tmp_path / name for name in files)))
        assert "\n" not in str(caught.value)


def test_a_dicom_series_with_a_missing_slice_is_refused_in_one_line(image, tmp_path, capfd):
    folder = write_dicom(image, tmp_path / "series")
    (folder / "2.dcm").unlink()
    with pytest.raises(UserError, match="not equally spaced"):
        read_scan(find_scans([str(folder)])[0])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("axis", [0, 1])
def test_a_dicom_series_of_a_tilted_gantry_is_refused(image, axis, tmp_path):
    along = np.array(image.GetDirection()).reshape(3, 3)[:, axis]
    read_scan(find_scans([str(write_dicom(image, tmp_path / "rounded", 0.01 * along))])[0])
    folder = write_dicom(image, tmp_path / "tilted", 0.3 * along)
    with pytest.raises(UserError, match=r"/tilted: its slices shift sideways, by up to 1\.2 mm.*dcm2niix"):
        read_scan(find_scans([str(folder)])[0])


def test_a_dicom_file_of_many_frames_is_a_scan(image, tmp_path):
    write(sitk.Cast(image, sitk.sitkUInt16), tmp_path / "frames" / "1.dcm")
    scan = read_scan(find_scans([str(tmp_path / "frames")])[0])
    assert np.array_equal(scan.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0))
    assert scan.geometry.spacing == image.GetSpacing()


def test_numbered_scans_of_one_channel_are_scans(image, tmp_path):
    for name in ("a_0000", "a_0001", "b_0000"):
        sitk.WriteImage(image, tmp_path / f"{name}.nii.gz")
    assert [scan.name for scan in find_scans([str(tmp_path)])] == ["a", "b"]
    assert [scan.name for scan in find_scans([str(tmp_path)], channels=2)] == ["a", "b"]
    assert [scan.name for scan in find_scans([str(tmp_path)], channels=1)] == ["a_0000", "a_0001", "b"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_numbered_scans_of_several_channels_are_scans(image, suffix, tmp_path):
    join = sitk.Compose if suffix == ".nrrd" else sitk.JoinSeries
    for i in range(2):
        write(join([image, image + i]), tmp_path / f"case_{i:04d}{suffix}")
    found = find_scans([str(tmp_path)], channels=2)
    assert [scan.name for scan in found] == ["case_0000", "case_0001"]
    assert [len(read_scan(scan).array) for scan in found] == [2, 2]


@pytest.mark.parametrize(("sform", "qform"), [(2, 1), (4, 1), (0, 0)])
def test_headers_that_name_two_orientations_are_refused(tmp_path, sform, qform):
    path = tmp_path / "a.nii.gz"
    turned, affine = np.diag([-1.0, -1, 1, 1]), np.eye(4)
    affine[:3, 3] = 1  # the sform of a unit matrix is taken for the truth by both readers
    scan = nib.Nifti1Image(np.arange(60, dtype="f4").reshape(3, 4, 5), affine)
    scan.set_sform(affine, sform)
    scan.set_qform(turned, qform)
    scan.to_filename(path)
    with pytest.raises(UserError, match=rf"its axes are \w+ by one .* \(sform_code {sform}, qform_code {qform}\)"):
        read_scan(ScanFiles("a", (path,)))
    scan.set_qform(affine, 1)  # now both say the same
    scan.set_sform(affine, 1)
    scan.to_filename(path)
    assert read_scan(ScanFiles("a", (path,))).array.shape == (1, 3, 4, 5)


def test_a_link_to_nothing_is_a_scan_that_cannot_be_read(image, tmp_path):
    write(image, tmp_path / "a.nii.gz")
    (tmp_path / "b.nii.gz").symlink_to("nowhere")
    found = find_scans([str(tmp_path)])
    assert [scan.name for scan in found] == ["a", "b"]
    with pytest.raises(UserError, match="no such file"):
        read_scan(found[1])


def test_a_pattern_takes_no_answers(image, tmp_path):
    for name in ("s1/a.nii.gz", "answers/a.nii.gz"):
        write(image, tmp_path / name)
    found = find_scans([str(tmp_path / "**" / "*.nii.gz")], besides=tmp_path / "answers")
    assert [scan.paths for scan in found] == [((tmp_path / "s1" / "a.nii.gz"),)]
    assert len(find_scans([str(tmp_path / "answers")], besides=tmp_path / "answers")) == 1  # if it was asked for


def test_channels_on_a_grid_of_our_own_are_written_in_4d(image, tmp_path):
    scan = read_scan(find_scans([str(write(image, tmp_path / "a.nrrd"))])[0])
    write_array(np.ones((3, *scan.array.shape[1:]), "f4"), scan, tmp_path / "b.nii.gz")
    assert nib.load(tmp_path / "b.nii.gz").shape == (*scan.array.shape[1:], 3)


def test_scans_of_one_name_are_called_by_their_folders_too(image, tmp_path):
    for name in ("sub-1/T1.nii.gz", "sub-2/T1.nii.gz", "sub-2/T2.nii.gz"):
        write(image, tmp_path / name)
    assert names(tmp_path / "*" / "*.nii.gz") == ["T2", "sub-1_T1", "sub-2_T1"]
    assert names(tmp_path / "sub-1", tmp_path / "sub-1" / "T1.nii.gz") == ["T1"]  # the same twice is one


def test_axes_that_are_not_at_right_angles_are_refused(tmp_path):
    sheared = np.eye(4)
    sheared[0, 1] = 0.3
    sheared[:3, 1] /= np.linalg.norm(sheared[:3, 1])
    path = tmp_path / "a.nii.gz"
    nib.Nifti1Image(np.ones((3, 4, 5), "f4"), sheared).to_filename(path)
    assert "not at right angles" in header_problem(path)
    with pytest.raises(UserError, match=r"a\.nii\.gz: "):
        read_scan(ScanFiles("a", (path,)))
