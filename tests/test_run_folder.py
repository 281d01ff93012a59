import csv
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from jsonargparse import Namespace

from rare_lightning.errors import UserError
from rare_lightning.run_folder import log_into, unused

TINY = Path(__file__).parent / "conf" / "tiny.yaml"


def wandb_logger(**settings):
    init_args = Namespace(save_dir=".", offline=False, **settings)
    return Namespace(class_path="lightning.pytorch.loggers.WandbLogger", init_args=init_args)


@pytest.mark.parametrize(("knows_key", "offline"), [(True, False), (False, True)])
def test_wandb_never_asks_for_a_key(monkeypatch, tmp_path, capsys, knows_key, offline):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    stub = SimpleNamespace(login=lambda prompt: prompt or knows_key, teardown=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    trainer = Namespace(logger=wandb_logger())
    log_into(trainer, tmp_path, "fit")
    csv_logger, logger = trainer.logger
    assert csv_logger["class_path"].endswith(".CSVLogger")
    assert logger.init_args.save_dir == str(tmp_path)
    assert logger.init_args.offline is offline
    assert ("wandb sync" in capsys.readouterr().out) is offline


def test_a_missing_extra_is_answered_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'rare-lightning\[wandb\]'"):
        log_into(Namespace(logger=[wandb_logger()]), tmp_path, "fit")


def test_logging_can_be_switched_off(tmp_path):
    trainer = Namespace(logger=False)
    log_into(trainer, tmp_path, "fit")
    assert trainer.logger is False


def test_unused_names_count_up(tmp_path):
    path = tmp_path / "config.yaml"
    assert unused(path) == path
    for _ in range(2):
        unused(path).touch()
    assert unused(path).name == "config-3.yaml"


@pytest.mark.slow
def test_a_run_without_a_key_leaves_an_offline_record_beside_the_csv(phantom, tmp_path):
    words = ["fit", "--config", str(TINY), "--data.root", str(phantom), "--run_dir", str(tmp_path / "run")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rare_lightning.cli", *words, "--trainer.logger", "WandbLogger"]
    ran = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "logging offline" in ran.stdout
    [record] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert record.stat().st_size > 0
    with open(tmp_path / "run" / "logs" / "fit" / "metrics.csv", newline="") as file:
        assert any(row["val/dice"] for row in csv.DictReader(file))
