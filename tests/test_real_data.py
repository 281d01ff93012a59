"""Real Decathlon tasks: RARE_DATA names the folder that holds them."""

import csv
import os
from pathlib import Path

import pytest

from rare_lightning.cli import main

ROOT = Path(os.environ.get("RARE_DATA", "unset"))
CONFIGS = Path(__file__).parents[1] / "configs"
pytestmark = pytest.mark.real_data


def task(name):
    [*found] = ROOT.glob(f"{name}*")
    if not found:
        pytest.skip(f"no {name} under RARE_DATA ({ROOT})")
    return str(found[0])


@pytest.mark.parametrize("name", ["Task04_Hippocampus", "Task01_BrainTumour"])
def test_real_tasks_have_no_problems(name, capsys):
    root = task(name)
    assert main(["data", "check", root]) == 0
    assert "no problems" in capsys.readouterr().out


def test_two_epochs_on_real_hippocampi_beat_chance_at_every_level(tmp_path):
    words = ["--config", str(CONFIGS / "hippocampus.yaml"), "--data.root", task("Task04_Hippocampus")]
    words += ["--trainer.max_epochs", "2", "--run_dir", str(tmp_path / "run"), "--trainer.accelerator", "cpu"]
    assert main(["fit", *words]) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]) == 0
    with open(tmp_path / "run" / "test" / "cases.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["truth"] == "fine"]
    assert len(rows) == 42 * 4 * 2
    for level in "0123":
        dice = [float(row["dice"]) for row in rows if row["level"] == level]
        assert sum(dice) / len(dice) > 0.2
