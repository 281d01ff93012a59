"""The whole chain with nnU-Net itself, where make nnunet-env was run; NNUNET_ENV names another environment."""

import json
import os
from pathlib import Path

import pytest

from rare_lightning.cli import main

ENVIRONMENT = Path(os.environ.get("NNUNET_ENV", Path(__file__).parents[3] / ".venv-nnunet"))
pytestmark = pytest.mark.slow


def test_nnunet_trains_and_answers_tilted_scans_of_two_channels(oblique, tmp_path):
    if not ENVIRONMENT.is_dir():
        pytest.skip(f"no nnU-Net in {ENVIRONMENT}: make nnunet-env")
    words = ["--root", str(oblique), "--output", str(tmp_path / "out"), "--environment", str(ENVIRONMENT)]
    words += [
        "--folds",
        "2",
        "--test_fraction",
        "0.2",
        "--levels",
        "1",
        "--depth",
        "2",
        "--strides",
        "[[2,2,1],[2,2,2]]",
    ]
    words += ["--minutes", "0.01", "--iterations", "1", "--mirror", "false"]
    assert main(["nnunet", *words]) == 0
    for route in ("native", "upsampled"):
        summary = json.loads((tmp_path / "out" / route / "test" / "summary.json").read_text())
        assert summary["fine"]["levels"]["1"]["spacing_mm"] == "1.6x1.8x2.5"
        training = summary["training"]
        assert training["epochs"] == training["iterations_per_epoch"] == 1
        assert training["features_per_stage"][0] == 32
        assert training["versions"]["nnunetv2"]
