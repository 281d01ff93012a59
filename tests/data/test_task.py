import json

import pytest

from rare_lightning.data.task import read_task, regions_of
from rare_lightning.data.voxels import case_id_of
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
    assert task.regions == {"left": (1,), "right": (2,)}


def test_regions_are_scored_and_their_values_are_classes(tmp_path):
    regions = {"whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    task = read_task(write(tmp_path, labels={"background": 0, **regions}, regions_class_order=[1, 2, 3]))
    assert task.classes == ("background", "label 1", "label 2", "enhancing")
    assert task.regions == {"whole tumour": (1, 2, 3), "core": (2, 3), "enhancing": (3,)}
    given = {"both": [1, 3]}
    assert regions_of(task, given) == given
    assert regions_of(task, None) == task.regions


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is none"),
        ({"x": []}, r"x is \[\]"),
        ({"x": [0, 1]}, r"x is \[0, 1\]"),
        ({"x": [1], "y": [3]}, r"label values from 1 to 2: y is \[3\]"),
    ],
)
def test_regions_that_no_label_map_holds_are_refused(tmp_path, given, message):
    with pytest.raises(UserError, match=rf"data.regions: regions must be .*{message}"):
        regions_of(read_task(write(tmp_path)), given)


@pytest.mark.parametrize(
    ("names", "case_id"),
    [
        (["a.nii.gz"], "a"),
        (["a.b.nii"], "a.b"),
        (["scan.mha"], "scan"),
        (["A.NRRD"], "A"),
        (["a_0000.nii"], "a"),
        (["a_0001.nii"], "a_0001"),
        (["a_0000.nii", "a_0001.nii"], "a"),
        (["a_0000.nii", "a_0002.nii"], "a"),
        (["a_0001.nii", "a_0000.nii"], "a"),
        (["a_t1.nii", "a_t1ce.nii"], "a"),
        (["a.b-12_t1.nii", "a.b-12_t2.nii"], "a.b-12"),
        (["t1.nii", "t1ce.nii"], "folder"),
        (["t1/a.nii", "t2/a.nii"], "a"),
        (["t1/a.nii", "t2/b.nii"], "a"),
    ],
)
def test_case_id_is_the_name_without_suffix_and_number(tmp_path, names, case_id):
    assert case_id_of([tmp_path / "folder" / name for name in names]) == case_id


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()


def files_of(task):
    """Names of images and label by case."""
    return {case.case_id: [*(image.name for image in case.images), case.label.name] for case in task.cases}


def test_cases_that_are_numbered_from_0_keep_their_numbers(tmp_path):
    names = [f"case_{i:04d}.nii.gz" for i in range(3)]
    entries = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    assert list(files_of(read_task(write(tmp_path, training=entries)))) == ["case_0000", "case_0001", "case_0002"]
    of_channel = {"image": "imagesTr/case_0000.nii.gz", "label": "labelsTr/case.nii.gz"}
    assert list(files_of(read_task(write(tmp_path, training=[of_channel])))) == ["case"]


def test_a_file_for_each_channel_can_be_listed(tmp_path):
    entry = {"image": ["imagesTr/a_t1.nii.gz", "imagesTr/a_t2.nii.gz"], "label": "labelsTr/a.nii.gz"}
    task = read_task(write(tmp_path, training=[entry]))
    assert files_of(task) == {"a": ["a_t1.nii.gz", "a_t2.nii.gz", "a.nii.gz"]}


def test_names_of_the_first_nnunet_stand_for_their_channels(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "imagesTr/b_0001.nii.gz", "imagesTr/a.nii", "imagesTr/a_0000.nii")
    task = read_task(write(tmp_path))
    assert files_of(task) == {"a": ["a.nii", "a.nii"], "b": ["b_0000.nii.gz", "b_0001.nii.gz", "b.nii.gz"]}


def test_a_missing_first_channel_of_the_first_nnunet_is_what_is_missed(tmp_path):
    touch(tmp_path, "imagesTr/b_0001.nii.gz", "imagesTr/a.nii")
    assert files_of(read_task(write(tmp_path)))["b"] == ["b_0000.nii.gz", "b_0001.nii.gz", "b.nii.gz"]


def test_cases_may_be_listed_as_the_second_nnunet_does(tmp_path):
    touch(tmp_path, "imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz")  # not listed, and so no case
    entry = {"images": ["elsewhere/a_0000.nii.gz", "elsewhere/a_0001.nii.gz"], "label": "elsewhere/a.nii.gz"}
    task = read_task(write(tmp_path, training=None, file_ending=".nii.gz", dataset={"a": entry}))
    assert files_of(task) == {"a": ["a_0000.nii.gz", "a_0001.nii.gz", "a.nii.gz"]}


@pytest.mark.parametrize("training", [None, []])
def test_where_nothing_is_listed_all_that_lies_there_is_a_case(tmp_path, training):
    """Also what lacks a label, an image or a channel, or has one too many: the check is to say so."""
    touch(
        tmp_path,
        *("imagesTr/a_0000.mha", "imagesTr/a_0001.mha", "labelsTr/a.mha"),
        *("imagesTr/b_0000.mha", "labelsTr/b.mha"),
        *("imagesTr/c_12_0000.mha", "imagesTr/c_12_0001.mha", "imagesTr/c_12_0003.mha", "labelsTr/c_12.mha"),
        *("labelsTr/d_0012.mha", "imagesTr/e_0001.mha", "imagesTr/._a_0000.mha", "imagesTr/note.txt"),
    )
    task = read_task(write(tmp_path, training=training, file_ending=".mha", numTraining=5))
    two = {case: [f"{case}_0000.mha", f"{case}_0001.mha", f"{case}.mha"] for case in ("a", "b", "d_0012", "e")}
    assert files_of(task) == {**two, "c_12": ["c_12_0000.mha", "c_12_0001.mha", "c_12_0003.mha", "c_12.mha"]}


def test_files_that_belong_to_no_case_and_cases_that_are_gone_are_named(tmp_path):
    names = [
        "imagesTr/a_0000.mha",
        "imagesTr/b_0000.MHA",
        "labelsTr/b.nii",
        "imagesTr/c_0010.mha",
        "labelsTr/c_0010.mha",
    ]
    touch(tmp_path, *names, "imagesTr/d.mha")
    write(tmp_path, training=None, file_ending=".mha", numTraining=3, modality={"0": "T1"})
    with pytest.raises(UserError) as refused:
        read_task(tmp_path)
    lines = str(refused.value).splitlines()
    assert "4 file(s) belong to no case" in lines[0]
    assert [line.split("/")[-1] for line in lines[1:]] == [
        "b_0000.MHA does not end in .mha",
        "b.nii does not end in .mha",
        "c_0010.mha has no channel number: call it c_0010_0000.mha",
        "d.mha has no channel number: call it d_0000.mha",
    ]
    for name in (*names[1:], "imagesTr/d.mha"):
        (tmp_path / name).unlink()
    with pytest.raises(UserError, match=r"dataset.json says 3 cases \('numTraining'\), imagesTr and labelsTr hold 1"):
        read_task(tmp_path)


def test_cases_whose_files_are_called_alike_are_told_apart_by_their_folders(tmp_path):
    patients = [{"image": f"sub-{i}/T1.nii.gz", "label": f"sub-{i}/mask.nii.gz"} for i in (2, 1)]
    other = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    task = read_task(write(tmp_path, training=[*patients, other, other]))
    assert [case.case_id for case in task.cases] == ["a", "a", "sub-1_T1", "sub-2_T1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"0": "background", "2": "x"}}, r"\[0, 2\] are not 0, 1, 2.*\"1\": \"x\""),
        ({"labels": {"0": "background"}}, "are not 0, 1, 2"),
        ({"labels": ["background", "x"]}, "not a dataset.json of the Decathlon or of nnU-Net"),
        ({"labels": {"background": 0, "x": 1, "y": 1}}, r"\[0, 1, 1\] are not 0, 1, 2"),
        ({"labels": {"1": "x", "2": "y"}}, """'labels' names no background. Add "0": "background\""""),
        ({"labels": {"background": 0, "x": [1, 3], "y": 3}}, r"\[0, 1, 3\] are not 0, 1, 2"),
        ({"labels": {"background": 0, "x": [1, 2], "y": []}}, r"dataset.json: regions must be .* y is \[\]"),
        ({"labels": {"x": [1, 2], "y": 2}}, "'labels' names no background"),
        ({"labels": {"background": 0, "x": ["a"]}}, "not a dataset.json of the Decathlon or of nnU-Net"),
        ({"labels": {"background": 0, "x": 1, "ignore": 2}}, "dataset.json: 'labels' holds 'ignore'"),
        ({"training": None}, "KeyError: 'training'.*a file of all channels or a list of one file each"),
        (
            {"training": [{"image": [], "label": "a.nii"}]},
            r'\{"image": \[\], "label": "a.nii"\} does not name its files',
        ),
        ({"training": [{"image": 3, "label": "a.nii"}]}, "does not name its files"),
        ({"training": [{"image": "a.nii", "label": ""}]}, "does not name its files"),
        ({"modality": {"1": "T1", "2": "T2"}}, "channels are numbered 1, 2, and not from 0 without gaps"),
        ({"modality": {}}, "channels are numbered not at all"),
        ({"training": None, "file_ending": ".png"}, "'file_ending' is .png, where .nii.gz, "),
        ({"training": None, "channel_names": {"0": "T1"}}, "names no 'file_ending', such as"),
        ({"training": None, "file_ending": ".nii.gz"}, "no cases under 'training', or in imagesTr and labelsTr"),
        ({"modality": None}, "not a dataset.json of the Decathlon or of nnU-Net .*channel_names"),
        ({"training": [{"image": "a.nii"}]}, "not a dataset.json of the Decathlon or of nnU-Net .*label"),
        ({"training": []}, "no cases under 'training'"),
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
    with pytest.raises(UserError, match=r"dataset\.json: is no JSON \(Expecting property name"):
        read_task(tmp_path)
