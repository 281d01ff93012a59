"""``rare predict`` as its users run it."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from rare_lightning.callbacks import PredictionWriter
from rare_lightning.cli import main
from tests.inference.conftest import checkpoint, scan

__all__ = ["checkpoint", "scan"]


@pytest.fixture
def folder(scan, tmp_path):
    """Two scans of different formats and spacings."""
    made = tmp_path / "scans"
    made.mkdir()
    sitk.WriteImage(scan, str(made / "one.nii.gz"))
    scan.SetSpacing((2.2, 2.2, 2.2))
    sitk.WriteImage(scan, str(made / "two.mha"))
    return made


def predict(checkpoint, inputs, output, *more):
    words = ["predict", "--ckpt_path", str(checkpoint), "--input", *map(str, inputs), "--output", str(output)]
    return main([*words, "--accelerator", "cpu", "--num_workers", "0", *more])


def volumes(output):
    with (output / "volumes.csv").open() as file:
        return list(csv.DictReader(file))


def test_loader_processes_change_nothing(checkpoint, folder, tmp_path):
    assert predict(checkpoint, [folder], tmp_path / "alone") == 0
    assert predict(checkpoint, [folder], tmp_path / "beside", "--num_workers", "2", "--preview") == 0
    for name in ("one.nii.gz", "two.mha"):
        alone, beside = (sitk.ReadImage(str(tmp_path / place / name)) for place in ("alone", "beside"))
        assert np.array_equal(sitk.GetArrayFromImage(alone), sitk.GetArrayFromImage(beside))
        assert alone.GetOrigin() == beside.GetOrigin()


def test_the_table_leaves_other_files_alone(checkpoint, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for i, text in enumerate(("[]", "{not json", '{"level": 0}', '{"level": 0, "volumes_ml": [1]}', "\x80")):
        (out / f"{i}.json").write_text(text, encoding="latin-1")
        (out / f"{i}.nii.gz").write_bytes(b"somebody else's")
    (out / "gone.json").write_text(json.dumps({"volumes_ml": {"Anterior": 1, "Posterior": 1}, "level": 0}))
    assert predict(checkpoint, [folder], out) == 0
    assert [row["case"] for row in volumes(out)] == ["one", "two"]


def test_a_folder_is_answered_on_each_scans_grid(checkpoint, folder, tmp_path, capsys):
    assert predict(checkpoint, [folder], tmp_path / "out", "--preview") == 0
    printed = capsys.readouterr().out
    assert "two: 2.2x2.2x2.2 mm enters at level 1 (keeps its detail), resampled to 2x2x2 mm" in printed
    for name in ("one.nii.gz", "two.mha"):
        asked, answer = (sitk.ReadImage(str(place / name)) for place in (folder, tmp_path / "out"))
        assert answer.GetPixelID() == sitk.sitkUInt8
        for what in ("Size", "Spacing", "Origin", "Direction"):
            assert getattr(asked, f"Get{what}")() == getattr(answer, f"Get{what}")()
    record = json.loads((tmp_path / "out" / "two.json").read_text())
    assert record["classes"] == {"0": "background", "1": "Anterior", "2": "Posterior"}
    assert record["level"] == 1
    rows = volumes(tmp_path / "out")
    assert [row["case"] for row in rows] == ["one", "two"]
    voxels = (sitk.GetArrayFromImage(answer) == 1).sum()
    assert float(rows[1]["Anterior_ml"]) == pytest.approx(voxels * 2.2**3 / 1000, abs=1e-3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one.json", "one.nii.gz", "one.png", "two.json", "two.mha", "two.png", "volumes.csv",
    ]  # fmt: skip


def test_a_broken_scan_is_reported_and_does_not_stop_the_others(checkpoint, folder, tmp_path, capsys):
    (folder / "bad.nii.gz").write_bytes(b"junk")
    assert predict(checkpoint, [folder], tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "1 of 3 scans were not segmented:\n  bad: " in error
    assert "cannot be read" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "out").glob("bad*"))
    assert (tmp_path / "out" / "two.mha").exists()


def test_nothing_is_written_where_no_scan_can_be_segmented(checkpoint, folder, tmp_path, capsys):
    flat = tmp_path / "flat.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(folder / "one.nii.gz"))[:, :, 0], str(flat))
    assert predict(checkpoint, [flat], tmp_path / "out") == 1
    assert "a 3D scan, or 4D with channels, is needed" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_a_scan_that_shows_nothing_is_reported(checkpoint, folder, tmp_path, capsys):
    empty = sitk.Image((16, 16, 16), sitk.sitkFloat32)
    sitk.WriteImage(empty, folder / "empty.nii.gz")
    assert predict(checkpoint, [folder], tmp_path / "out") == 1
    assert "1 of 3 scans were not segmented:\n  empty: " in (error := capsys.readouterr().err)
    assert "shows nothing" in error
    assert len(volumes(tmp_path / "out")) == 2


def test_a_scan_of_one_slice_is_answered(checkpoint, folder, tmp_path):
    path = tmp_path / "slice.nii.gz"
    sitk.WriteImage(sitk.ReadImage(str(folder / "one.nii.gz"))[:, :, 4:5], str(path))
    assert predict(checkpoint, [path], tmp_path / "out") == 0
    assert nib.load(tmp_path / "out" / "slice.nii.gz").shape == nib.load(path).shape


def test_resume_skips_what_is_done_and_nothing_is_overwritten(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(checkpoint, [folder / "one.nii.gz"], out) == 0
    before = (out / "one.nii.gz").stat().st_mtime_ns
    assert predict(checkpoint, [folder], out) == 1
    assert "--resume skips those" in capsys.readouterr().err
    assert predict(checkpoint, [folder], out, "--resume") == 0
    assert "1 of 2 scans have answers" in capsys.readouterr().out
    assert (out / "one.nii.gz").stat().st_mtime_ns == before
    assert len(volumes(out)) == 2
    assert predict(checkpoint, [folder], out, "--resume") == 0


@pytest.mark.parametrize(("setting", "was", "now"), [("level", "None", "1"), ("precision", "32-true", "bf16-mixed")])
def test_answers_of_other_settings_are_not_mixed(checkpoint, folder, tmp_path, capsys, setting, was, now):
    out = tmp_path / "out"
    assert predict(checkpoint, [folder / "one.nii.gz"], out) == 0
    assert predict(checkpoint, [folder], out, "--resume", f"--{setting}", now) == 1
    message = f"{out}: one was answered with {setting} {was}, and not {now}; choose another --output"
    assert message in capsys.readouterr().err
    assert len(volumes(out)) == 1


def test_answers_of_models_with_one_name_are_not_mixed(checkpoint, folder, tmp_path, capsys):
    models = [tmp_path / place / "best.ckpt" for place in ("one", "moved", "other")]
    for path in models:
        path.parent.mkdir()
        shutil.copy(checkpoint, path)
    content = torch.load(checkpoint, weights_only=True)
    next(weight for weight in content["state_dict"].values() if weight.is_floating_point()).add_(1)
    torch.save(content, models[2])
    out = tmp_path / "out"
    assert predict(models[0], [folder / "one.nii.gz"], out) == 0
    assert predict(models[1], [folder / "one.nii.gz"], out, "--resume") == 0
    capsys.readouterr()
    assert predict(models[2], [folder], out, "--resume") == 1
    assert f"{out}: one was answered with model ['best.ckpt " in capsys.readouterr().err
    assert len(volumes(out)) == 1


def test_more_processes_than_cores_are_refused(checkpoint, folder, tmp_path, capsys):
    many = str(2 * (os.cpu_count() or 1) + 1)
    assert predict(checkpoint, [folder], tmp_path / "out", "--accelerator", "cpu", "--devices", many) == 1
    assert f"--devices {many}: this machine has" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "file"), [("--probabilities", "_probabilities.nii.gz"), ("--preview", ".png")])
def test_resume_does_again_what_lacks_something_wanted(checkpoint, folder, tmp_path, word, file, capsys):
    scan, out = folder / "one.nii.gz", tmp_path / "out"
    assert predict(checkpoint, [scan], out) == 0
    assert predict(checkpoint, [scan], out, "--resume", word) == 0
    assert (out / f"one{file}").exists()
    before = (out / f"one{file}").stat().st_mtime_ns
    capsys.readouterr()
    assert predict(checkpoint, [scan], out, "--resume", word) == 0
    assert "1 of 1 scans have answers and are skipped" in capsys.readouterr().out
    assert (out / f"one{file}").stat().st_mtime_ns == before


def test_level_and_grid_are_obeyed(checkpoint, folder, tmp_path):
    assert predict(checkpoint, [folder / "two.mha"], tmp_path / "out", "--level", "2", "--grid", "base") == 0
    answer = sitk.ReadImage(str(tmp_path / "out" / "two.mha"))
    assert answer.GetSpacing() == pytest.approx((1, 1, 1))
    assert json.loads((tmp_path / "out" / "two.json").read_text())["level"] == 2
    assert set(np.unique(sitk.GetArrayFromImage(answer))) <= {0, 1, 2}


def test_probabilities_lie_on_the_scans_grid_and_their_likeliest_class_is_the_answer(checkpoint, folder, tmp_path):
    assert predict(checkpoint, [folder / "one.nii.gz"], tmp_path / "out", "--probabilities") == 0
    maps = nib.load(tmp_path / "out" / "one_probabilities.nii.gz")
    labels = nib.load(tmp_path / "out" / "one.nii.gz")
    assert np.array_equal(maps.affine, labels.affine)
    softmax = maps.get_fdata()
    assert softmax.shape == (*labels.shape, 3)
    np.testing.assert_allclose(softmax.sum(axis=-1), 1, atol=1e-5)
    assert np.array_equal(softmax.argmax(axis=-1), labels.get_fdata())
    assert predict(checkpoint, [folder / "two.mha"], tmp_path / "two", "--probabilities") == 0
    maps, labels = (sitk.ReadImage(str(tmp_path / "two" / name)) for name in ("two_probabilities.mha", "two.mha"))
    assert maps.GetOrigin() == labels.GetOrigin()
    assert np.array_equal(sitk.GetArrayFromImage(maps).argmax(axis=-1), sitk.GetArrayFromImage(labels))


@pytest.mark.slow
@pytest.mark.parametrize("scans", [1, 3])
def test_two_processes_share_the_scans(checkpoint, folder, tmp_path, scans):
    (folder / "bad.nii.gz").write_bytes(b"junk")
    inputs = [folder / "one.nii.gz"] if scans == 1 else [folder]
    words = ["predict", "--ckpt_path", checkpoint, "--input", *inputs, "--output", tmp_path / "out"]
    words += ["--accelerator", "cpu", "--devices", "2", "--num_workers", "0"]
    command = [sys.executable, "-m", "rare_lightning.cli", *words]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert ran.returncode == (0 if scans == 1 else 1), ran.stderr
    assert [row["case"] for row in volumes(tmp_path / "out")] == (["one"] if scans == 1 else ["one", "two"])
    assert ran.stderr.count("were not segmented") == (0 if scans == 1 else 1)
    assert predict(checkpoint, [folder / "one.nii.gz"], tmp_path / "alone") == 0
    together, alone = (nib.load(tmp_path / place / "one.nii.gz") for place in ("out", "alone"))
    assert np.array_equal(together.get_fdata(), alone.get_fdata())


def test_scans_never_give_way_to_their_answers(checkpoint, folder, capsys):
    assert predict(checkpoint, [folder], folder, "--resume") == 1
    assert "would take its place" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--accelerator", "gpu"], "--accelerator gpu", 1),
        (["--num_workers", "-1"], "must be >= 0", 1),
        (["--level", "7"], "the model has levels 0, 1, 2", 1),
        (["--grid", "other"], "grid", 2),
        (["--output", "/proc/out"], "cannot be written to", 1),
        (["--ckpt_path", "gone.ckpt"], "no such checkpoint", 1),
        (["--input", "gone"], "no such file, folder or pattern", 1),
    ],
)
def test_wrong_words_are_answered_with_a_line(words, message, code, checkpoint, folder, tmp_path, capsys):
    assert predict(checkpoint, [folder], tmp_path / "out", *words) == code
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("ctrl_c_kept")
@pytest.mark.parametrize("cause", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_prediction_whose_answers_are_kept(checkpoint, folder, tmp_path, monkeypatch, cause, capsys):
    write = PredictionWriter.write_on_batch_end

    def signalled(self, *args):
        write(self, *args)
        os.kill(os.getpid(), cause)

    with monkeypatch.context() as context:
        context.setattr(PredictionWriter, "write_on_batch_end", signalled)
        assert predict(checkpoint, [folder], tmp_path / "out") == 128 + cause
    assert f"ended by {cause.name}. rare predict goes on with the same command and --resume" in capsys.readouterr().err
    assert len(volumes(tmp_path / "out")) == 1
    assert predict(checkpoint, [folder], tmp_path / "out", "--resume") == 0
    assert len(volumes(tmp_path / "out")) == 2


def test_a_scan_that_is_given_twice_is_answered_once(checkpoint, folder, tmp_path):
    scan = sorted(folder.glob("*.nii.gz"))[0]
    listing = tmp_path / "list.csv"
    listing.write_text(f"image\n{scan}\n{scan}\n")
    assert predict(checkpoint, [listing, scan], tmp_path / "out") == 0
    assert len(volumes(tmp_path / "out")) == 1
