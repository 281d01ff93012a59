import os
import shutil
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from matplotlib.image import imread

from rare_lightning.cli import main
from rare_lightning.evaluation.slices import Slice
from rare_lightning.loggers import TensorBoardRunLogger, WandbRunLogger

wandb = pytest.importorskip("wandb", reason="pip install 'rare-lightning[wandb]'")
from tests.wandb_records import read_offline_runs  # noqa: E402  # imports wandb

CLASSES = ["background", "Anterior", "Posterior"]
TINY = Path(__file__).parent / "conf" / "tiny.yaml"
OVERLAYS = Path(__file__).parents[1] / "configs" / "logger"


@pytest.fixture(autouse=True)
def without_a_key(tmp_path, monkeypatch):
    """Nobody's key, and what Lightning and the logger put into the environment is gone afterwards."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    yield
    wandb.teardown()
    wandb.run = None  # of a service that was killed


def fit(phantom, run, overlay="wandb", *words):
    overlays = ["--config", str(TINY), "--config", str(OVERLAYS / f"{overlay}.yaml")]
    return main(["fit", *overlays, "--data.root", str(phantom), "--run_dir", str(run), *words])


def piece():
    plane = np.zeros((6, 4), np.uint8)
    plane[1, 3] = 2
    return Slice(1, "2x2x2", plane / 2.0, plane, plane, 0.5, 1.0)


def failures(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "rare_lightning.loggers"]


def kill_service():
    [service] = [p for p in psutil.Process().children() if "wandb-core" in " ".join(p.cmdline())]
    service.send_signal(signal.SIGKILL)
    service.wait()


def test_training_and_test_are_offline_runs_of_one_group(phantom, tmp_path, capsys):
    run = tmp_path / "unet"
    assert fit(phantom, run) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line]
    assert str(run) in line
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    runs = read_offline_runs(run)
    trained, tested = runs["fit"], runs["test"]
    assert trained["group"] == tested["group"]
    assert trained["id"] != tested["id"]
    assert {trained["name"], tested["name"]} == {"unet"}
    assert {trained["project"], tested["project"]} == {"rare-lightning"}

    config = trained["config"]
    assert config["model"]["network"]["init_args"]["features"] == 2
    assert sorted(map(len, config["split"].values())) == [2, 2, 2]
    assert {"commit", "versions", "hardware", "seed"} <= set(config["fit"])
    assert "fit" not in tested["config"]
    assert tested["config"]["model"]["network"] == config["model"]["network"]

    assert {
        "train/loss_step", "train/loss_epoch", "train/level_1/cross_entropy", "train/level_1/consistency",
        "train/learning_rate", "train/patches_per_second", "val/dice", "val/dice/level_1/Posterior",
        "val/level_1/consistency",
    } <= set(trained["history"])  # fmt: skip
    assert trained["history"]["train/patches_per_second"] > 0
    for number in (1, 2):
        shown = f"val/slices/case_{number}"
        assert trained["history"][f"{shown}.count"] == 2  # levels
        assert "level 1" in trained["history"][f"{shown}.captions"][1]
        for masks in trained["history"][f"{shown}.all_masks"]:
            assert set(masks) == {"truth", "prediction"}
            assert (trained["media"] / masks["truth"]["path"]).is_file()

    assert 0 <= tested["history"]["test/fine/dice/level_1"] <= 1
    assert tested["history"]["test/cases.nrows"] == 4  # cases, levels
    assert tested["history"]["test/dice_by_resolution/fine_table.nrows"] == 6  # levels, classes and their mean
    artifacts = {
        kind: [entry.path for entry in artifact.manifest.contents] for kind, artifact in tested["artifacts"].items()
    }
    assert artifacts["model"] == ["best.ckpt"]
    assert artifacts["evaluation"] == ["cases.csv", "summary.json"]
    assert not (tmp_path / ".local").exists()  # nothing waits in the home folder


def test_masks_stand_upright(tmp_path):
    logger = WandbRunLogger(save_dir=tmp_path, offline=True)
    logger.log_slices("val/slices", {"a": [piece()]}, CLASSES, step=0)
    logger.finalize("success")
    masks = list(tmp_path.glob("wandb/*/files/media/images/mask/**/*.png"))
    assert len(masks) == 2  # truth and prediction
    stored = np.round(imread(masks[0]) * 255)
    assert stored.shape == (4, 6)
    assert stored[0, 1] == 2  # the most anterior row is on top


@pytest.mark.parametrize("where", ["log_metrics", "log_hyperparams", "log_slices", "finalize"])
def test_a_failing_logger_is_warned_of_once(where, tmp_path, monkeypatch, caplog):
    class Broken:
        def __getattr__(self, name):
            raise OSError("No space left on device")

    logger = WandbRunLogger(save_dir=tmp_path, offline=True)
    logger._experiment = Broken()
    calls = {
        "log_metrics": ({"a": 1.0},),
        "log_hyperparams": ({"a": 1},),
        "log_slices": ("val/slices", {"a": [piece()]}, CLASSES, 0),
        "finalize": ("success",),
    }
    for name in (where, *calls):
        getattr(logger, name)(*calls[name])
    assert failures(caplog) == [
        "Weights & Biases failed (OSError: No space left on device). "
        "The run goes on without it; the CSV files have everything."
    ]


def test_training_survives_the_death_of_the_service(phantom, tmp_path, monkeypatch, caplog):
    log_metrics = WandbRunLogger.log_metrics
    killed = []

    def log_after_its_death(self, *args, **kwargs):
        if not killed:
            _ = self.experiment
            kill_service()
            killed.append(True)
        log_metrics(self, *args, **kwargs)

    monkeypatch.setattr(WandbRunLogger, "log_metrics", log_after_its_death)
    assert fit(phantom, tmp_path / "run", "wandb", "--trainer.max_epochs", "2") == 0
    assert killed
    assert len(failures(caplog)) == 1
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
    assert "val/dice" in (tmp_path / "run" / "logs" / "fit" / "metrics.csv").read_text()


def test_a_server_that_cannot_be_reached_leaves_an_offline_run_of_another_id(tmp_path, monkeypatch, caplog):
    begun, init = [], wandb.init

    def unreachable(**settings):
        begun.append(settings)
        if settings.get("mode") != "offline":
            raise wandb.errors.CommError("no route to host")
        return init(**settings)

    monkeypatch.setattr(wandb, "init", unreachable)
    logger = WandbRunLogger(save_dir=tmp_path, id="known", group="unet-known")
    logger.log_metrics({"a": 1.0}, step=0)
    logger.finalize("success")
    assert "no route to host" in caplog.text
    assert "wandb sync" in caplog.text
    assert [settings["resume"] for settings in begun] == ["allow", None]
    [run] = read_offline_runs(tmp_path).values()
    assert run["group"] == "unet-known"
    assert run["id"] != "known"
    assert run["history"]["a"] == 1.0


def test_tensorboard_shows_a_montage(phantom, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'rare-lightning[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardRunLogger(save_dir=tmp_path, name="tensorboard", version="fit")
    logger.log_slices("val/slices", {"a": [piece()], "b": [piece()]}, CLASSES, step=3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "fit")).Reload()
    [picture] = events.Images("val/slices")
    assert (picture.step, picture.height > 100) == (3, True)


@pytest.mark.slow
def test_tensorboard_logs_a_run_and_its_test(phantom, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'rare-lightning[tensorboard]'")
    run = tmp_path / "run"
    assert fit(phantom, run, "tensorboard") == 0
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    assert {path.parent.name for path in run.glob("tensorboard/*/events*")} == {"fit", "test"}


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"), reason="mounts a disk"
)
def test_training_survives_a_full_disk(phantom, tmp_path, caplog):
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=48k tmpfs {disk} 2>/dev/null"):
        pytest.skip("may not mount a disk")
    try:
        assert fit(phantom, tmp_path / "run", "wandb", "--trainer.logger.init_args.save_dir", str(disk)) == 0
    finally:
        wandb.teardown()
        os.system(f"umount -l {disk}")
    assert len(failures(caplog)) == 1
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").is_file()
