import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from rare_lightning.cli import main

OBLIQUE = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.4, 1.1, -0.1], [-0.1, 0.2, 2.9]]))[0]


def image(array, spacing=(1.0, 1.0, 2.0), origin=(5.0, -3.0, 8.0), direction=OBLIQUE):
    made = sitk.GetImageFromArray(array)
    made.SetSpacing(spacing)
    made.SetOrigin(origin)
    made.SetDirection(direction.flatten().tolist())
    return made


@pytest.fixture
def truth():
    array = np.zeros((8, 12, 16), dtype=np.uint8)
    array[2:6, 2:8, 4:12] = 1
    array[2:6, 8:10, 4:12] = 2
    return image(array)


@pytest.fixture
def folders(tmp_path, truth):
    for name in ("labels", "predictions"):
        (tmp_path / name).mkdir()
        for case in ("a", "b"):
            sitk.WriteImage(truth, str(tmp_path / name / f"{case}.nii.gz"))
    return tmp_path


def evaluate(folder, *words, predictions=("predictions",)):
    paths = [str(folder / name) for name in predictions]
    words = words or ("--classes", "[left, right]")
    words = ["--labels", str(folder / "labels"), "--output", str(folder / "out"), *words]
    return main(["evaluate", "--predictions", *paths, *words])


def scores(folder):
    with open(folder / "out" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_label_agrees_with_itself(folders):
    assert evaluate(folders) == 0
    rows = scores(folders)
    assert {(row["case"], row["class"]) for row in rows} == {(c, k) for c in "ab" for k in ("left", "right")}
    assert all(float(row["dice"]) == 1 and float(row["hd95_mm"]) == 0 for row in rows)
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert summary["fine"]["mean"]["dice"] == 1
    assert "level" not in summary


def test_regions_are_scored_in_place_of_the_classes(folders, truth):
    swapped = sitk.ChangeLabel(truth, {1: 2, 2: 1})
    sitk.WriteImage(swapped, str(folders / "predictions" / "a.nii.gz"))
    assert evaluate(folders, "--classes", "[left, right]", "--regions", "{both: [1, 2], left: [1]}") == 0
    dice = {(row["case"], row["class"]): float(row["dice"]) for row in scores(folders)}
    assert dice == {("a", "both"): 1, ("b", "both"): 1, ("a", "left"): 0, ("b", "left"): 1}


@pytest.mark.parametrize("axes", [(2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flips", [(True, False, True), (False, True, False)])
def test_the_order_of_axes_makes_no_difference(folders, truth, axes, flips):
    turned = sitk.Flip(sitk.PermuteAxes(truth, axes), flips)
    sitk.WriteImage(turned, str(folders / "predictions" / "a.nii.gz"))
    assert evaluate(folders) == 0
    assert all(float(row["dice"]) == 1 for row in scores(folders))


def test_a_finer_prediction_is_read_at_the_voxels_of_the_label(folders, truth):
    # Each voxel in three: the label's centre is the centre of the middle one.
    fine = sitk.GetArrayFromImage(truth).repeat(3, 0).repeat(3, 1).repeat(3, 2)
    spacing = np.divide(truth.GetSpacing(), 3)
    origin = np.array(truth.GetOrigin()) - OBLIQUE @ spacing
    sitk.WriteImage(image(fine, spacing.tolist(), origin.tolist()), str(folders / "predictions" / "b.nrrd"))
    (folders / "predictions" / "b.nii.gz").unlink()
    assert evaluate(folders) == 0
    assert all(float(row["dice"]) == 1 for row in scores(folders))


def test_beyond_the_prediction_is_background(folders, truth):
    sitk.WriteImage(truth[:8], str(folders / "predictions" / "a.nii.gz"))  # the first half of the first axis
    assert evaluate(folders) == 0
    assert [float(row["dice"]) for row in scores(folders) if row["case"] == "a"] == pytest.approx([2 / 3] * 2, abs=1e-6)


def test_numbered_names_are_cases_and_no_channels(folders):
    for path in [*(folders / "labels").iterdir(), *(folders / "predictions").iterdir()]:
        path.rename(path.with_name({"a": "case_0000", "b": "case_0001"}[path.name[0]] + ".nii.gz"))
    assert evaluate(folders) == 0
    assert {row["case"] for row in scores(folders)} == {"case_0000", "case_0001"}


def test_folders_are_levels(folders):
    assert evaluate(folders, predictions=("predictions", "labels")) == 0
    assert {row["level"] for row in scores(folders)} == {"0", "1"}
    assert evaluate(folders, "--classes", "[left, right]", "--levels", "[2]") == 0
    assert {row["level"] for row in scores(folders)} == {"2"}


def test_labels_without_a_prediction_are_counted_and_said(folders, capsys):
    assert evaluate(folders) == 0
    assert "no prediction" not in capsys.readouterr().out
    assert json.loads((folders / "out" / "summary.json").read_text())["labels_without_prediction"] == 0
    for case in "cdef":
        (folders / "labels" / f"{case}.nii.gz").write_bytes(b"never read")
    assert evaluate(folders) == 0
    assert "4 of 6 labels have no prediction and are not scored: c, d, e, ... (4 in all)\n" in capsys.readouterr().out
    summary = json.loads((folders / "out" / "summary.json").read_text())
    assert (summary["cases"], summary["labels_without_prediction"]) == (2, 4)


def test_levels_of_different_cases_are_refused(folders, capsys):
    shutil.copytree(folders / "predictions", folders / "coarse")
    (folders / "coarse" / "b.nii.gz").unlink()
    for order in (("predictions", "coarse"), ("coarse", "predictions")):
        assert evaluate(folders, predictions=order) == 1
        assert f"{folders / 'coarse'}: lacks b, which another folder" in capsys.readouterr().err
    assert not (folders / "out").exists()


def test_a_task_names_the_classes(phantom, tmp_path):
    words = ["--predictions", str(phantom / "labelsTr"), "--labels", str(phantom), "--output", str(tmp_path / "out")]
    assert main(["evaluate", *words]) == 0
    assert {row["class"] for row in scores(tmp_path)} == {"Anterior", "Posterior"}
    assert all(row["dice"] in ("", "1.000000") for row in scores(tmp_path))


def test_a_task_tells_which_label_is_whose(phantom, tmp_path):
    task = json.loads((phantom / "dataset.json").read_text())
    (tmp_path / "task" / "segmentations").mkdir(parents=True)
    (tmp_path / "predictions").mkdir()
    for i, case in enumerate(task["training"]):
        label = f"segmentations/other_{i}.nii.gz"
        shutil.copy(phantom / case["label"], tmp_path / "task" / label)
        shutil.copy(phantom / case["label"], tmp_path / "predictions" / Path(case["image"]).name)
        case["label"] = label
    (tmp_path / "task" / "dataset.json").write_text(json.dumps(task))
    words = ["--predictions", str(tmp_path / "predictions"), "--labels", str(tmp_path / "task")]
    assert main(["evaluate", *words, "--output", str(tmp_path / "out")]) == 0
    assert all(row["dice"] in ("", "1.000000") for row in scores(tmp_path))


def test_bad_predictions_are_one_line_and_nothing_is_written(folders, truth, capsys):
    target = folders / "predictions" / "a.nii.gz"

    def refused(*words):
        assert evaluate(folders, *words) == 1
        assert not (folders / "out").exists()
        return capsys.readouterr().err

    assert "give --classes" in refused("--nsd_tolerance_mm", "2")
    assert "must be one level" in refused("--classes", "[x]", "--levels", "[0, 1]")
    assert evaluate(folders, "--nsd_tolerance_mm", "-1") == 2
    assert "nsd_tolerance_mm" in capsys.readouterr().err
    sitk.WriteImage(truth * 7, str(target))
    assert "holds 0 to 2" in refused()
    sitk.WriteImage(sitk.Compose(truth, truth), str(target))
    assert "has 2 channels" in refused()
    sitk.WriteImage(image(sitk.GetArrayFromImage(truth), origin=(900.0, 0.0, 0.0)), str(target))
    assert "lies outside" in refused()
    target.rename(folders / "predictions" / "c.nii.gz")
    assert "1 of 2 label maps have no label" in refused()
