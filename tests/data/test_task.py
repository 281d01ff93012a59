import json

import pytest

from rare_lightning.data.task import case_id_of, read_task
from rare_lightning.errors import UserError

DESCRIPTION = {
    "name": "Spleen",
    "modality": {"1": "T2", "0": "T1"},
    "labels": {"0": "background", "2": "right", "1": "left"},
    "training": [
        {"image": "./imagesTr/b.nii.gz", "label": "./labelsTr/b.nii.gz"},
        {"image": "./imagesTr/a.nii", "label": "./labelsTr/a.nii"},
    ],
}


def write(root, **changes):
    content = {key: value for key, value in {**DESCRIPTION, **changes}.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_reads_channels_classes_and_cases_in_their_order(tmp_path):
    task = read_task(write(tmp_path))
    assert task.name == "Spleen"
    assert task.channels == ("T1", "T2")
    assert task.classes == ("background", "left", "right")
    assert [case.case_id for case in task.cases] == ["a", "b"]
    assert task.cases[1].label == tmp_path / "labelsTr/b.nii.gz"


def test_order_of_cases_in_the_file_changes_nothing(tmp_path):
    forwards = read_task(write(tmp_path))
    assert read_task(write(tmp_path, training=DESCRIPTION["training"][::-1])) == forwards


def test_nnunet_spelling_is_understood(tmp_path):
    labels = {"background": 0, "right": 2, "left": 1}
    task = read_task(write(tmp_path, modality=None, channel_names={"0": "CT"}, labels=labels))
    assert task.channels == ("CT",)
    assert task.classes == ("background", "left", "right")


@pytest.mark.parametrize(
    ("name", "case_id"),
    [
        ("a.nii.gz", "a"),
        ("a.b.nii", "a.b"),
        ("scan.mha", "scan"),
        ("A.NRRD", "A"),
        ("a_0000.nii", "a"),
        ("a_0001.nii", "a_0001"),
    ],
)
def test_case_id_is_the_name_without_suffix(tmp_path, name, case_id):
    assert case_id_of(tmp_path / name) == case_id


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background", "2": "x"}}, r"\[0, 2\] are not 0, 1, 2.*\"1\": \"x\""),
        ({"labels": {"0": "background"}}, "are not 0, 1, 2"),
        ({"labels": ["background", "x"]}, "not a Decathlon dataset.json"),
        ({"labels": {"background": 0, "x": 1, "y": 1}}, r"\[0, 1, 1\] are not 0, 1, 2"),
        ({"labels": {"background": 0, "x": [1, 2], "y": 2}}, "'labels' holds regions of several values"),
        ({"training": None}, "KeyError: 'training'.*one file each: several channels are a fourth dimension"),
        ({"training": [{"image": ["a_0000.nii", "a_0001.nii"], "label": "a.nii"}]}, "an image of 2 files"),
        ({"modality": None}, "not a Decathlon dataset.json .*channel_names"),
        ({"training": [{"image": "a.nii"}]}, "not a Decathlon dataset.json .*label"),
        ({"training": []}, "lists no cases"),
        ({"labels": {"0": "background", "1": "x", "2": "x"}}, "two classes are called x"),
        ({"labels": {str(value): str(value) for value in range(256)}}, "256 classes are more than the 255"),
    ],
)
def test_a_wrong_description_is_refused_with_the_rule(tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        read_task(write(tmp_path, **changes))


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"dataset.json: not found.*rare phantom"):
        read_task(tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"not a Decathlon dataset\.json"):
        read_task(tmp_path)
