import gzip
import shutil
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from rare_lightning.data.integrity import check_cases, inspect_case
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError


@pytest.fixture
def task(phantom, tmp_path):
    shutil.copytree(phantom, tmp_path / "task")
    return read_task(tmp_path / "task")


def edit(path, change):
    """Rewrite a file with its array changed, on the same grid."""
    image = sitk.ReadImage(path)
    edited = sitk.GetImageFromArray(change(sitk.GetArrayFromImage(image)))
    if edited.GetSize() == image.GetSize():
        edited.CopyInformation(image)
    sitk.WriteImage(edited, path)


def set_header(path, **values):
    image = sitk.ReadImage(path)
    for name, value in values.items():
        getattr(image, f"Set{name}")(value)
    sitk.WriteImage(image, path)


def with_nan(array):
    array = array.astype(np.float32)
    array[3, 3, 3:5] = np.nan, np.inf
    return array


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corrupt(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[70:72] = b"\xff\xff"  # the data type
    path.write_bytes(gzip.compress(bytes(content)))


def claim(path, size):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[42:48] = size.to_bytes(2, "little") * 3
    path.write_bytes(gzip.compress(bytes(content)))


def scale_pixdim(path):
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[80:84] = np.float32(2).tobytes()  # pixdim[1], beside an sform of 1 mm
    path.write_bytes(gzip.compress(bytes(content)))


BREAKAGES = {
    "missing image": (lambda c: c.images[0].unlink(), "imagesTr.*: file not found"),
    "missing label": (lambda c: c.label.unlink(), "labelsTr.*: file not found"),
    "truncated gzip": (lambda c: truncate(c.images[0]), "imagesTr.*cannot be read"),
    "not gzip": (lambda c: c.label.write_bytes(b"<html>"), "labelsTr.*cannot be read"),
    "broken header": (lambda c: corrupt(c.images[0]), "imagesTr.*cannot be read"),
    "a header that claims 64 TB": (lambda c: claim(c.images[0], 32767), "imagesTr.*describes 7036.* bytes, it holds"),
    "a header that claims less": (lambda c: claim(c.images[0], 20), "imagesTr.*describes .* bytes, it holds more"),
    "NaN in the label": (lambda c: edit(c.label, with_nan), "labelsTr.*: 2 voxels are NaN or infinite"),
    "label in place of its image": (
        lambda c: shutil.copy(c.label, c.images[0]),
        "imagesTr.*: holds the voxels of its label",
    ),
    "shape": (lambda c: edit(c.label, lambda a: a[1:]), "image shape .* differs from label shape"),
    "spacing": (lambda c: set_header(c.label, Spacing=(1, 1, 1.01)), "image spacing .* differs from label spacing"),
    "origin": (lambda c: set_header(c.label, Origin=(500, 0, 0)), "different places, up to .* mm apart"),
    "direction": (lambda c: set_header(c.label, Direction=(0, 1, 0, 0, 0, 1, 1, 0, 0)), "different places"),
    "NaN and infinity": (lambda c: edit(c.images[0], with_nan), "2 voxels are NaN or infinite"),
    "constant": (lambda c: edit(c.images[0], np.ones_like), "channel 0 is constant"),
    "channels": (
        lambda c: sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(c.images[0])] * 2), c.images[0]),
        r"2 channels, dataset.json lists 1 \(MRI\)",
    ),
    "label values": (lambda c: edit(c.label, lambda a: a * 7), r"label values \[7, 14\] are not in .* \(0\.\.2\)"),
    "fractions in the label": (
        lambda c: edit(c.label, lambda a: a * np.float32(0.75)),
        r"label values \[0\.75, 1\.5\] are not in",
    ),
    "label channels": (
        lambda c: sitk.WriteImage(sitk.JoinSeries([sitk.ReadImage(c.label)] * 3), c.label),
        "3 channels, a label map has 1",
    ),
    "two spacings": (lambda c: scale_pixdim(c.images[0]), r"voxels are of 2x1x1 by pixdim and of 1x1x1 by its affine"),
    "a single slice": (
        lambda c: [edit(path, lambda a: a[:1]) for path in (c.images[0], c.label)],
        "is not a 3D volume",
    ),
}


def test_good_cases_have_no_problems(task):
    assert [inspect_case(case, task).problems for case in task.cases] == [[]] * 6


def test_a_hundredth_of_a_voxel_is_a_headers_rounding(task):
    case = task.cases[0]
    origin = sitk.ReadImage(case.label).GetOrigin()
    for shift, count in ((0.009, 0), (0.011, 1)):
        set_header(case.label, Origin=(origin[0] + shift, *origin[1:]))
        assert len(problems := inspect_case(case, task).problems) == count
    assert problems[0].endswith("image and label lie at different places, up to 0.011 mm apart")


@pytest.mark.parametrize("kind", BREAKAGES)
@pytest.mark.filterwarnings("ignore:Using TorchIO images without a torchio.SubjectsLoader")
def test_each_kind_of_problem_is_found(task, kind):
    case = task.cases[0]
    breakage, message = BREAKAGES[kind]
    breakage(case)
    problems = inspect_case(case, task).problems
    assert problems, kind
    assert all(problem.startswith(f"{case.case_id}: ") and "\n" not in problem for problem in problems)
    with pytest.raises(UserError, match=message):
        check_cases(task, [case])


def test_all_problems_of_all_cases_are_listed_at_once(task):
    edit(task.cases[0].images[0], np.ones_like)
    edit(task.cases[0].label, lambda a: a * 7)
    task.cases[3].images[0].unlink()
    task = replace(task, cases=(*task.cases, task.cases[1]))
    with pytest.raises(UserError, match=r"task: 4 problem\(s\)") as raised:
        check_cases(task, task.cases)
    assert "hippocampus_002: listed 2 times" in str(raised.value)
    assert [line.split(":")[0].strip() for line in str(raised.value).splitlines()[1:]] == [
        "hippocampus_002",
        "hippocampus_001",
        "hippocampus_001",
        "hippocampus_004",
    ]


def test_lists_of_channels_are_compared_with_each_other(task, tmp_path):
    """By their names alone: files that are swapped, or given twice, are good images."""
    cases = []
    for case in task.cases:
        images = tuple(tmp_path / f"{case.case_id}_{name}.nii.gz" for name in ("t1", "t2"))
        for image in images:
            shutil.copy(case.images[0], image)
        cases.append(replace(case, images=images))
    task = replace(task, channels=("T1", "T2"), cases=tuple(cases))
    check_cases(task, task.cases)
    (first, second), (third, _) = cases[1].images, cases[4].images
    cases[1], cases[4] = replace(cases[1], images=(second, first)), replace(cases[4], images=(third, third))
    with pytest.raises(UserError) as refused:
        check_cases(replace(task, cases=tuple(cases)), cases)
    lines = [line.strip() for line in str(refused.value).splitlines()[1:]]
    assert lines == [
        f"{cases[1].case_id}: its channels are listed as t2, t1, and those of most cases as t1, t2",
        f"{cases[4].case_id}: {third}, {third}: the same file for two channels",
    ]


def test_two_cases_of_one_name_are_told_from_one_that_is_listed_twice(task):
    renamed = replace(task.cases[1], case_id=task.cases[0].case_id)
    with pytest.raises(
        UserError, match=r"hippocampus_001: the name of 2 cases \(.*_001.nii.gz, .*_002.nii.gz\); rename"
    ):
        check_cases(replace(task, cases=(task.cases[0], renamed)), [])


def test_a_folder_in_a_files_place_is_called_one(task, tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path}: is a folder"):
        check_cases(task, [replace(task.cases[0], images=(tmp_path,))])
