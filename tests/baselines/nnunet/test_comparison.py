import csv
import json

import pytest

from rare_lightning.cli import main

SPLIT = ["--folds", "2", "--test_fraction", "0.34", "--levels", "2", "--depth", "3"]


def nnunet(phantom, environment, output, *words):
    given = ["--root", str(phantom), "--environment", str(environment), "--output", str(output), "--minutes", "2"]
    return main(["nnunet", *given, *SPLIT, *words])


def read_cases(folder):
    with open(folder / "test" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def error_line(capsys):
    [line] = capsys.readouterr().err.splitlines()
    return line


@pytest.fixture
def output(tmp_path):
    return tmp_path / "nnunet"


def test_the_truth_as_an_answer_scores_what_it_must(phantom, environment, output):
    assert nnunet(phantom, environment, output) == 0
    split = json.loads((output / "settings.json").read_text())["split"]
    for route in ("native", "upsampled"):
        rows = read_cases(output / route)
        assert {row["case"] for row in rows} == set(split["test"])
        assert len(rows) == 2 * 3 * 2 * 2  # cases, levels, truths, classes
        perfect = [row for row in rows if row["truth"] == "level" or row["level"] == "0" or route == "upsampled"]
        assert all(float(row["dice"]) == 1 for row in perfect)
        # Brought up from a coarser grid the truth is blurred, but neither shifted nor flipped.
        assert all(float(row["dice"]) > 0.6 for row in rows if row["level"] == "1")
        summary = json.loads((output / route / "test" / "summary.json").read_text())
        assert summary["protocol"] == {"label_downsampling": "majority", "nsd_tolerance_mm": 1.0}
        assert summary["cases"] == 2
        assert summary["level"]["levels"]["2"]["mean"]["dice"] == 1
        assert summary["training"]["minutes"] == 2
        assert summary["training"]["seed"] == 0
        assert summary["training"]["mirror"] is True
        assert {"nnunetv2", "rare-lightning"} <= set(summary["training"]["versions"])
        assert {"command", "commit", "hardware"} <= set(summary["test"])


def test_cases_and_voxels_are_those_of_rare_test(phantom, environment, output, tmp_path):
    words = ["--data.folds", "2", "--data.test_fraction", "0.34", "--data.levels", "2", "--data.depth", "3"]
    words += ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1"]
    words += ["--trainer.log_every_n_steps", "1"]
    network = ["--model.network", "rare_lightning.RAREUNet", "--model.network.init_args.features", "2"]
    run = tmp_path / "run"
    assert main(["fit", "--data.root", str(phantom), "--run_dir", str(run), *words, *network]) == 0
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    assert nnunet(phantom, environment, output, "--seed", "5", "--splits_file", str(run / "splits.json")) == 0
    keys = ("case", "level", "spacing_mm", "truth", "class")
    expected = [[row[key] for key in keys] for row in read_cases(run)]
    assert [[row[key] for key in keys] for row in read_cases(output / "native")] == expected


def test_nothing_is_done_twice_and_scores_may_be_asked_for_anew(phantom, environment, output, calls):
    assert nnunet(phantom, environment, output) == 0
    steps = ["nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict", "nnUNetv2_predict"]
    assert calls() == steps
    cases = (output / "native" / "test" / "cases.csv").read_bytes()
    assert nnunet(phantom, environment, output) == 0
    assert (output / "native" / "test" / "cases.csv").read_bytes() == cases
    assert nnunet(phantom, environment, output, "--label_downsampling", "nearest") == 0
    assert (output / "native" / "test" / "cases.csv").read_bytes() != cases
    assert calls() == steps


def test_a_failing_command_gets_a_line_and_is_run_again(phantom, environment, output, calls, capsys):
    fail = environment / "bin" / "fail"
    fail.write_text("nnUNetv2_predict")
    assert nnunet(phantom, environment, output) == 1
    line = error_line(capsys)
    assert "predict_native failed with exit code 3" in line
    assert "RuntimeError: out of luck" in line
    assert str(output / "logs" / "predict_native.log") in line
    assert not (output / "native").exists()
    fail.unlink()
    (output / "predictions" / "native").mkdir(parents=True)  # what the failed one left
    assert nnunet(phantom, environment, output) == 0
    assert calls().count("nnUNetv2_train") == 1
    assert calls().count("nnUNetv2_predict") == 3


def test_a_command_that_leaves_nothing_has_failed(phantom, environment, output, capsys):
    (environment / "bin" / "lazy").write_text("nnUNetv2_train")
    assert nnunet(phantom, environment, output) == 1
    assert "step train left no" in error_line(capsys)


def test_an_interrupted_training_goes_on_from_its_checkpoint(phantom, environment, output, calls):
    (environment / "bin" / "fail").write_text("nnUNetv2_train")
    assert nnunet(phantom, environment, output) == 1
    [raw] = (output / "nnUNet_raw").iterdir()
    fold = output / "nnUNet_results" / raw.name / "RareTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    fold.mkdir(parents=True)
    (fold / "checkpoint_latest.pth").touch()
    assert nnunet(phantom, environment, output) == 1
    first, second = [
        line for line in (environment / "bin" / "calls").read_text().splitlines() if line.startswith("nnUNetv2_train")
    ]
    assert not first.endswith("--c")
    assert second.endswith("--c")
    assert fold.is_dir()


def test_a_folder_of_other_settings_is_refused(phantom, environment, output, capsys):
    (environment / "bin" / "fail").write_text("nnUNetv2_plan_and_preprocess")
    assert nnunet(phantom, environment, output) == 1
    capsys.readouterr()
    assert nnunet(phantom, environment, output, "--minutes", "3") == 1
    line = error_line(capsys)
    assert "another minutes" in line
    assert "--output" in line


def test_where_and_how_fast_it_runs_may_change(phantom, environment, output):
    fail = environment / "bin" / "fail"
    fail.write_text("nnUNetv2_train")
    assert nnunet(phantom, environment, output) == 1
    settings = json.loads((output / "settings.json").read_text())
    # As earlier versions wrote it.
    (output / "settings.json").write_text(json.dumps({**settings, "device": "cpu", "num_workers": 1}))
    fail.unlink()
    for words in (["--num_workers", "2", "--device", "cuda"], []):  # trained, and scored anew
        assert nnunet(phantom, environment, output, *words) == 0
        training = json.loads((output / "native" / "test" / "summary.json").read_text())["training"]
        assert (training["num_workers"], training["device"], training["seed"]) == (2, "cuda", 0)


def test_without_nnunet_nothing_is_written(phantom, output, tmp_path, capsys):
    assert nnunet(phantom, tmp_path / "nowhere", output) == 1
    line = error_line(capsys)
    assert "make nnunet-env" in line
    assert f"{tmp_path / 'nowhere'}/bin/pip install --requirement requirements-nnunet.lock" in line
    assert not output.exists()


def test_a_dry_run_prints_everything_and_does_nothing(phantom, tmp_path, output, capsys):
    words = ["--dry_run", "--iterations", "7", "--mirror", "false", "--num_workers", "3"]
    assert nnunet(phantom, tmp_path / "nowhere", output, *words) == 0
    printed = capsys.readouterr().out
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        assert f"export {name}={output / name}" in printed
    for words in ("RARE_MINUTES=2.0", "RARE_ITERATIONS=7", "nnUNet_n_proc_DA=3"):
        assert f"export {words}" in printed
    assert "nnUNetv2_train 1 3d_fullres 0" in printed
    assert printed.count("--disable_tta") == 2
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes (0) must be > 0"),
        (["--iterations", "0"], "--iterations (0) must be > 0"),
        (["--num_workers", "0"], "--num_workers (0) must be > 0"),
        (["--test_fraction", "0"], "no test cases"),
    ],
)
def test_settings_that_cannot_be_are_refused(phantom, environment, output, capsys, words, said):
    assert nnunet(phantom, environment, output, *words) == 1
    assert said in error_line(capsys)
    assert not output.exists()
