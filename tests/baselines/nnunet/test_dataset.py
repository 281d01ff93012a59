import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rare_lightning.baselines.nnunet.dataset import dataset_name, level_scans, write_dataset, write_scans, write_splits
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.integrity import check_cases
from rare_lightning.data.splits import read_split
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError

SPLIT = {"folds": 2, "test_fraction": 0.34}


def data_module(root, **options):
    return DecathlonDataModule(str(root), levels=2, depth=3, num_workers=0, **SPLIT, **options)


def scans_of(data, case):
    return level_scans(data.preprocessing.on_base_grid(case), data.strides, data.label_downsampling)


def test_training_files_keep_their_grids_and_headers(oblique, tmp_path):
    data = data_module(oblique)
    write_dataset(data.task, data.split, tmp_path / "raw")
    trained = sorted([*data.split.train, *data.split.val])
    images = sorted(path.name for path in (tmp_path / "raw" / "imagesTr").iterdir())
    assert images == [f"{case}_000{channel}.nii.gz" for case in trained for channel in (0, 1)]
    assert sorted(path.name for path in (tmp_path / "raw" / "labelsTr").iterdir()) == [f"{c}.nii.gz" for c in trained]
    for case in trained:
        source = nib.load(oblique / "imagesTr" / f"{case}.nii.gz")
        for channel in (0, 1):
            written = nib.load(tmp_path / "raw" / "imagesTr" / f"{case}_000{channel}.nii.gz")
            assert np.array_equal(written.get_fdata(), source.get_fdata()[..., channel])
            for form in ("get_sform", "get_qform"):
                affine, code = getattr(written.header, form)(coded=True)
                expected, expected_code = getattr(source.header, form)(coded=True)
                assert np.array_equal(affine, expected)
                assert code == expected_code
            assert written.header.get_zooms() == source.header.get_zooms()[:3]
        name = f"labelsTr/{case}.nii.gz"
        assert (tmp_path / "raw" / name).read_bytes() == (oblique / name).read_bytes()


def test_the_description_is_of_nnunets_second_version(oblique, tmp_path):
    data = data_module(oblique)
    assert dataset_name(data.task) == "Dataset001_Tiltedhead"
    write_dataset(data.task, data.split, tmp_path / "raw")
    assert json.loads((tmp_path / "raw" / "dataset.json").read_text()) == {
        "name": "Tilted head",
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "one": 1, "two": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
        "overwrite_image_reader_writer": "NibabelIOWithReorient",
    }


def test_what_was_written_is_read_back_as_the_same_cases(oblique, tmp_path):
    data = data_module(oblique)
    write_dataset(data.task, data.split, tmp_path / "raw")
    read = read_task(tmp_path / "raw")
    assert (read.channels, read.classes[1:]) == (data.task.channels, data.task.classes[1:])
    assert [case.case_id for case in read.cases] == sorted([*data.split.train, *data.split.val])
    check_cases(read, read.cases)
    for case in read.cases:
        assert len(case.images) == 2
        source = next(source for source in data.task.cases if source.case_id == case.case_id)
        one, other = (data.preprocessing.on_base_grid(each) for each in (case, source))
        for name in ("image", "label"):
            assert torch.equal(one[name].data, other[name].data)
            assert np.array_equal(one[name].affine, other[name].affine)
    again = data_module(tmp_path / "raw")
    write_dataset(again.task, again.split, tmp_path / "again")
    for path in (tmp_path / "again" / "imagesTr").iterdir():
        assert path.read_bytes() == (tmp_path / "raw" / "imagesTr" / path.name).read_bytes()


def test_a_channel_that_lies_elsewhere_is_found(oblique, tmp_path):
    data = data_module(oblique)
    write_dataset(data.task, data.split, tmp_path / "raw")
    first, second, third, _ = cases = read_task(tmp_path / "raw").cases
    moved = nib.load(first.images[1])
    nib.Nifti1Image(moved.get_fdata(), moved.affine @ np.diag([1, 1, 2, 1])).to_filename(first.images[1])
    second.images[1].unlink()
    third.images[1].rename(tmp_path / "raw" / "imagesTr" / f"{third.case_id}_0002.nii.gz")
    with pytest.raises(UserError) as refused:
        check_cases(read_task(tmp_path / "raw"), cases)
    lines = str(refused.value).splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == [case.case_id for case in (first, second, third)]
    assert f"{first.images[1]}: image spacing" in lines[0]
    assert f"{second.images[1]}: file not found" in lines[1]
    assert f"{third.images[1]}: file not found" in lines[2]


def test_the_split_file_is_read_back_as_the_same_split(phantom, tmp_path):
    data = data_module(phantom)
    write_splits(data.split, tmp_path / "new" / "splits_final.json")
    assert read_split(tmp_path / "new" / "splits_final.json", 0, [c.case_id for c in data.task.cases]) == data.split


def test_uncompressed_files_are_compressed_as_they_are(phantom, tmp_path):
    root = tmp_path / "task"
    description = json.loads((phantom / "dataset.json").read_text())
    for entry in description["training"]:
        for part in ("image", "label"):
            target = root / entry[part].removesuffix(".gz")
            target.parent.mkdir(parents=True, exist_ok=True)
            nib.load(phantom / entry[part]).to_filename(target)
            entry[part] = entry[part].removesuffix(".gz")
    (root / "dataset.json").write_text(json.dumps(description))
    data = data_module(root)
    write_dataset(data.task, data.split, tmp_path / "raw")
    case = data.split.train[0]
    written = nib.load(tmp_path / "raw" / "imagesTr" / f"{case}_0000.nii.gz")
    source = nib.load(root / "imagesTr" / f"{case}.nii")
    assert np.array_equal(written.get_fdata(), source.get_fdata())
    assert written.header == source.header


def test_files_of_other_formats_are_written_with_the_same_voxels_and_grids(oblique, tmp_path):
    """Channels as components of a voxel, as MHA has them."""
    root = tmp_path / "task"
    description = json.loads((oblique / "dataset.json").read_text())
    for entry in description["training"]:
        for part in ("image", "label"):
            image = sitk.ReadImage(oblique / entry[part])
            if image.GetDimension() == 4:
                image = sitk.Compose([image[..., channel] for channel in range(2)])
            entry[part] = entry[part].replace(".nii.gz", ".mha")
            (root / entry[part]).parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(image, root / entry[part])
    (root / "dataset.json").write_text(json.dumps(description))
    data, original = data_module(root), data_module(oblique)
    check_cases(data.task, data.task.cases)
    write_dataset(data.task, data.split, tmp_path / "raw")
    write_dataset(original.task, original.split, tmp_path / "expected")
    for expected in (tmp_path / "expected").glob("*/*.nii.gz"):
        one, other = (
            nib.load(path) for path in (expected, tmp_path / "raw" / expected.relative_to(expected.parents[1]))
        )
        assert np.array_equal(one.get_fdata(), other.get_fdata())
        assert np.allclose(one.affine, other.affine, atol=1e-4)


def test_5d_files_and_capital_suffixes_are_written_alike(oblique, tmp_path):
    data = data_module(oblique)
    write_dataset(data.task, data.split, tmp_path / "expected")
    for path in sorted(oblique.glob("*/*.nii.gz")):
        image = nib.load(path)
        voxels = image.get_fdata(dtype=np.float32)
        if voxels.ndim == 4:
            image.header.set_intent("vector")
            nib.Nifti1Image(voxels[:, :, :, None], None, image.header).to_filename(path)
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    description = (oblique / "dataset.json").read_text()
    (oblique / "dataset.json").write_text(description.replace(".nii.gz", ".NII.GZ"))
    data = data_module(oblique)
    check_cases(data.task, data.task.cases)
    write_dataset(data.task, data.split, tmp_path / "raw")
    for expected in (tmp_path / "expected").glob("*/*.nii.gz"):
        written = nib.load(tmp_path / "raw" / expected.relative_to(expected.parents[1]))
        assert np.array_equal(written.get_fdata(), nib.load(expected).get_fdata())


def test_a_dataset_that_cannot_be_written_leaves_nothing(phantom, tmp_path):
    data = data_module(phantom)
    (tmp_path / "labels").mkdir()
    broken = read_task(phantom)
    object.__setattr__(broken.cases[-1], "label", tmp_path / "missing.nii.gz")
    object.__setattr__(broken.cases[0], "label", tmp_path / "missing.nii.gz")
    object.__setattr__(broken.cases[1], "label", tmp_path / "missing.nii.gz")
    with pytest.raises(FileNotFoundError):
        write_dataset(broken, data.split, tmp_path / "folder" / "raw")
    assert not list((tmp_path / "folder").iterdir())


@pytest.mark.parametrize("spacing", [None, [1.0, 1.0, 2.0]])
def test_scans_have_the_voxels_of_rare_test_and_true_headers(oblique, tmp_path, spacing):
    data = data_module(oblique, spacing=spacing)
    data.prepare_data()
    cases = [case for case in data.task.cases if case.case_id in data.split.test]
    write_scans(((case.case_id, scans_of(data, case)) for case in cases), tmp_path / "scans")
    for case, batch in zip(cases, data.test_dataloader(), strict=True):
        corner = nib.as_closest_canonical(nib.load(case.images[0])).affine @ [-0.5, -0.5, -0.5, 1]
        shape = batch["shape"][0].tolist()
        for scan in scans_of(data, case):
            assert scan.image.shape[1:] == scan.label.shape
            d, h, w = scan.label.shape
            assert [d, h, w] == [-(-n // s) for n, s in zip(shape, scan.stride, strict=True)]
            assert torch.equal(scan.label, batch["label"][scan.level][0][:d, :h, :w])
            seen = batch["image"][scan.level][0][:, :d, :h, :w]
            for channel in (0, 1):  # normalised, but the same
                pair = np.stack([scan.image[channel].flatten(), seen[channel].flatten()])
                assert np.corrcoef(pair)[0, 1] == pytest.approx(1, abs=1e-5)
                name = f"{case.case_id}_level_{scan.level}_000{channel}.nii.gz"
                native = nib.load(tmp_path / "scans" / "native" / name)
                assert np.array_equal(native.get_fdata(dtype=np.float32), scan.image[channel].numpy())
                np.testing.assert_allclose(native.header.get_qform(), native.header.get_sform(), atol=1e-4)
                # TorchIO keeps the centre of the first voxel when it resamples, and the corner otherwise.
                if spacing is None:
                    np.testing.assert_allclose(native.affine @ [-0.5, -0.5, -0.5, 1], corner, atol=1e-4)
                if scan.level == 0:
                    assert not (tmp_path / "scans" / "upsampled" / name).exists()
                    continue
                upsampled = nib.load(tmp_path / "scans" / "upsampled" / name)
                assert upsampled.shape == tuple(n * s for n, s in zip(scan.label.shape, scan.stride, strict=True))
                for image in (native, upsampled):
                    first = image.affine @ [-0.5, -0.5, -0.5, 1]
                    last = image.affine @ [*(np.array(image.shape) - 0.5), 1]
                    expected = native.affine @ [-0.5, -0.5, -0.5, 1], native.affine @ [*(np.array([d, h, w]) - 0.5), 1]
                    np.testing.assert_allclose([first, last], expected, atol=1e-3)
