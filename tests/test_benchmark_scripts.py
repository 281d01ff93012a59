import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rare_lightning.cli import main
from rare_lightning.data import make_phantom

SCRIPTS = Path(__file__).parents[1] / "benchmarks"
CONFIG = Path(__file__).parent / "conf" / "tiny.yaml"


def run_script(name, *words):
    ran = subprocess.run([sys.executable, str(SCRIPTS / name), *words], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout + ran.stderr


def split_of(run):
    (split,) = json.loads((run / "splits.json").read_text())
    return split


@pytest.mark.slow
def test_all_methods_are_trained_and_compared_and_what_is_done_is_skipped(phantom, tmp_path):
    output = tmp_path / "comparison"
    words = ["--root", str(phantom), "--config", str(CONFIG), "--minutes", "0.02", "--output", str(output)]
    words += ["--nnunet_environment", str(tmp_path / "none"), "--", "--model.network.init_args.features", "2"]

    first = run_script("comparison.py", *words)
    assert "Without nnU-Net v2" in first
    for folder, protocol in ((output, "majority"), (output / "corner", "corner")):
        record = json.loads((folder / "comparison" / "comparison.json").read_text())
        assert next(iter(record["methods"])) == record["reference"] == "rare-unet"
        assert len(record["methods"]) == 5
        assert {facts["protocol"]["label_downsampling"] for facts in record["methods"].values()} == {protocol}
    trained = (output / "unet" / "checkpoints" / "last.ckpt").stat().st_mtime
    assert "$ rare fit" not in run_script("comparison.py", *words)
    assert (output / "unet" / "checkpoints" / "last.ckpt").stat().st_mtime == trained

    # Stopped after its training: tested again, and not trained again.
    (output / "unet" / "test" / "summary.json").unlink()
    assert "$ rare test" in run_script("comparison.py", *words)
    assert (output / "unet" / "test" / "summary.json").exists()


@pytest.mark.slow
def test_methods_of_a_single_epoch_are_compared(phantom, tmp_path):
    words = ["--root", str(phantom), "--config", str(CONFIG), "--minutes", "0", "--output", str(tmp_path)]
    words += ["--methods", "rare-unet", "unet", "--nnunet_environment", str(tmp_path / "none")]
    run_script("comparison.py", *words, "--", "--model.network.init_args.features", "2")
    assert (tmp_path / "comparison" / "comparison.json").exists()


@pytest.mark.slow
def test_cross_validation_tests_every_case_once_by_a_network_that_never_saw_it(phantom, tmp_path):
    words = ["--root", str(phantom), "--config", str(CONFIG), "--folds", "2", "--runs", str(tmp_path)]
    words += ["--output", str(tmp_path / "record.json")]
    assert "Not tested yet" in run_script("cross_validation.py", *words, "--only", "1", "--", "--seed_everything=1")
    assert not (tmp_path / "record.json").exists()
    run_script("cross_validation.py", *words)
    tested = []
    for fold in (0, 1):
        split = split_of(tmp_path / f"fold-{fold}")
        rows = (tmp_path / f"fold-{fold}" / "test" / "cases.csv").read_text().splitlines()[1:]
        cases = {row.split(",")[0] for row in rows}
        assert cases.isdisjoint({*split["train"], *split["val"]})
        tested += sorted(cases)
    assert len(tested) == len(set(tested)) == 6
    rows = json.loads((tmp_path / "record.json").read_text())["rows"]
    assert len(rows) == 2 and "mean, `fine`" in rows[0]  # a row for each level
    assert "seed_everything: 1" in (tmp_path / "fold-1" / "config.yaml").read_text()


@pytest.mark.slow
def test_fine_tuning_begins_from_cases_that_neither_it_nor_the_test_has(tmp_path):
    root, output = tmp_path / "phantom", tmp_path / "record.json"
    make_phantom(str(root), cases=12, size=[24, 24, 24])
    words = ["--root", str(root), "--config", str(CONFIG), "--epochs", "1", "--folds", "5", "--runs", str(tmp_path)]
    printed = run_script("fine_tuning.py", *words, "--output", str(output))
    coarse, fine, scratch = (split_of(tmp_path / f"{name}-0") for name in ("coarse-labels", "fine-tuned", "scratch"))
    assert fine == scratch
    assert set(coarse["train"]).isdisjoint(fine["train"])
    assert coarse["test"] == fine["test"]
    assert "but for" in printed and "heads" in printed  # made anew: there are other classes
    assert [row["training"] for row in json.loads(output.read_text())["rows"]] == ["from scratch", "fine-tuned"]


@pytest.mark.slow
def test_a_learning_curve_adds_cases_and_no_steps(tmp_path):
    root, runs, output = tmp_path / "phantom", tmp_path / "runs", tmp_path / "record.json"
    make_phantom(str(root), cases=12, size=[24, 24, 24])
    words = ["--root", str(root), "--config", str(CONFIG), "--shares", "4", "1", "--folds", "5", "--runs", str(runs)]
    run_script("learning_curve.py", *words, "--output", str(output), "--", "--data.batch_size", "1")
    few, all_ = (split_of(runs / f"{count}-0") for count in (2, 8))
    assert set(few.pop("train")) < set(all_.pop("train"))
    assert few == all_  # validated and tested on the same cases
    assert [row["training cases"] for row in json.loads(output.read_text())["rows"]] == ["2", "8"]
    steps = [
        torch.load(runs / f"{n}-0" / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] for n in (2, 8)
    ]
    assert steps[0] == steps[1]


@pytest.mark.slow
def test_a_model_twice_is_no_better_than_once_and_as_good_as_in_its_test(phantom, tmp_path):
    run, output = tmp_path / "run", tmp_path / "record.json"
    assert main(["fit", "--config", str(CONFIG), "--data.root", str(phantom), "--run_dir", str(run)]) == 0
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert main(["test", "--ckpt_path", checkpoint]) == 0
    run_script("ensemble.py", "--checkpoints", checkpoint, checkpoint, "--root", str(phantom), "--output", str(output))
    first, second, both = (
        [float(v) for k, v in row.items() if k != "model"] for row in json.loads(output.read_text())["rows"]
    )
    assert first == second == pytest.approx(both, abs=2e-4)
    tested = json.loads((run / "test" / "summary.json").read_text())["fine"]
    assert first[:-1] == pytest.approx([level["mean"]["dice"] for level in tested["levels"].values()], abs=2e-3)
