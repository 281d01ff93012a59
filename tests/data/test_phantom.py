import filecmp

import numpy as np
import pytest
import torchio as tio

from rare_lightning.data import make_phantom
from rare_lightning.data.integrity import inspect_case
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError


def assert_same_bytes(one, other):
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    _, different, errors = filecmp.cmpfiles(one, other, names, shallow=False)
    assert not different + errors
    assert names


@pytest.mark.parametrize("kind", ["hippocampus", "brats"])
def test_same_seed_same_bytes(tmp_path, kind):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        make_phantom(str(tmp_path / name), kind, cases=1, unlabelled=1, seed=seed, size=[24, 26, 24])
    assert_same_bytes(tmp_path / "a", tmp_path / "b")
    image = "imagesTr/" + f"{kind}_001.nii.gz"
    assert (tmp_path / "a" / image).read_bytes() != (tmp_path / "c" / image).read_bytes()


@pytest.mark.parametrize(("kind", "channels", "classes"), [("hippocampus", 1, 3), ("brats", 4, 4)])
def test_a_phantom_is_a_sound_task_with_every_class_in_every_case(tmp_path, kind, channels, classes):
    root = tmp_path / "task"
    make_phantom(str(root), kind, cases=5, unlabelled=1, size=[32, 36, 32])
    task = read_task(root)
    assert (len(task.channels), len(task.classes), len(task.cases)) == (channels, classes, 5)
    orientations = set()
    for case in task.cases:
        assert inspect_case(case, task).problems == []
        label = tio.LabelMap(case.label)
        assert set(np.unique(label.numpy()).tolist()) == set(range(classes))
        orientations.add("".join(label.orientation))
    assert len(orientations) == 5
    assert len(list((root / "imagesTs").iterdir())) == 1
    assert (root / "imagesTs" / f"{kind}_006.nii.gz").is_file()


def test_brats_structures_are_nested_inside_the_brain(tmp_path):
    make_phantom(str(tmp_path / "task"), "brats", cases=2, unlabelled=0, size=[40, 44, 40])
    for case in read_task(tmp_path / "task").cases:
        image, label = tio.ScalarImage(case.images[0]).numpy(), tio.LabelMap(case.label).numpy()[0]
        assert (image[:, label > 0] > 0).all()
        assert (image[:, 0, 0, 0] == 0).all()
        volume, enhancing, core = ((label == value).sum() for value in (1, 3, 2))
        assert volume > 0
        assert enhancing > 0
        assert core > 0
        # T1Gd lights up the enhancing rim alone.
        assert image[2][label == 3].mean() > 1.5 * image[2][label == 2].mean()


def test_head_and_body_look_alike(phantom):
    # Intensity alone must not tell them apart, or the task would be no task.
    separations = []
    for case in read_task(phantom).cases:
        image, label = tio.ScalarImage(case.images[0]).numpy()[0], tio.LabelMap(case.label).numpy()[0]
        head, body = image[label == 1], image[label == 2]
        separations.append((head.mean() - body.mean()) / np.hypot(head.std(), body.std()))
    assert np.abs(separations).max() < 2
    assert abs(np.mean(separations)) < 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cases": 0}, r"cases \(0\) must be"),
        ({"unlabelled": -1}, r"unlabelled \(-1\)"),
        ({"size": [32, 32]}, "three numbers >= 24"),
        ({"size": [32, 32, 8]}, "three numbers >= 24"),
    ],
)
def test_impossible_wishes_are_refused(tmp_path, arguments, message):
    with pytest.raises(UserError, match=message):
        make_phantom(str(tmp_path / "task"), **arguments)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_and_nothing_left_half_written(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="exists already"):
        make_phantom(str(tmp_path))
    monkeypatch.setattr(tio.ScalarImage, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        make_phantom(str(tmp_path / "task"), cases=1, size=[24, 24, 24])
    assert not list(tmp_path.iterdir())
