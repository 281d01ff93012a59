import csv
import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import Namespace

from rare_lightning.errors import UserError
from rare_lightning.files import unused
from rare_lightning.run_folder import log_into, only_writer, settings_of_training

TINY = Path(__file__).parent / "conf" / "tiny.yaml"


def test_one_training_at_a_time_writes_into_a_run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("rare_lightning.run_folder.SECONDS_TO_END", 0.1)
    with (
        only_writer(tmp_path / "run"),
        pytest.raises(UserError, match="another rare fit writes into this run folder"),
        only_writer(tmp_path / "run"),
    ):
        pass
    with only_writer(tmp_path / "run"):
        pass
    assert not any(tmp_path.iterdir())


def test_a_disk_without_locks_is_written_to(tmp_path, monkeypatch, caplog):
    def refuse(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    with caplog.at_level("INFO"), only_writer(tmp_path / "run"):
        (tmp_path / "run" / "file").touch()
    assert "cannot be kept from another rare fit that writes into it ([Errno 37] No locks available)" in caplog.text


def wandb_logger(**settings):
    unset = dict.fromkeys(("name", "id", "version", "project"))
    init_args = Namespace(**{"save_dir": ".", "offline": False, **unset, **settings})
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
    assert logger.class_path == "rare_lightning.loggers.WandbRunLogger"
    assert logger.init_args.save_dir == str(tmp_path)
    assert logger.init_args.offline is offline
    assert ("wandb sync" in capsys.readouterr().out) is offline


def log_command(folder, subcommand, monkeypatch, knows_key=True, **settings):
    """What W&B is told for a command of a run folder, whose configuration is kept by a fit as ``rare fit`` does."""
    monkeypatch.delenv("WANDB_MODE", raising=False)
    stub = SimpleNamespace(login=lambda prompt: knows_key, teardown=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    trainer = Namespace(logger=wandb_logger(**settings) if subcommand == "fit" else None)
    log_into(trainer, folder, subcommand)
    told = trainer.logger[1]
    if subcommand == "fit" and not (folder / "config.yaml").exists():
        record = {"trainer": {"logger": [{"class_path": told.class_path, "init_args": told.init_args.as_dict()}]}}
        (folder / "config.yaml").write_text(yaml.safe_dump(record))
    return told.init_args


def test_online_all_commands_of_a_run_go_on_with_one_wandb_run(tmp_path, monkeypatch):
    trained, resumed, tested = (log_command(tmp_path, command, monkeypatch) for command in ("fit", "fit", "test"))
    assert len({(told.id, told.group, told.name, told.job_type) for told in (trained, resumed, tested)}) == 1
    assert (trained.name, trained.job_type) == (tmp_path.name, "fit")


@pytest.mark.parametrize("keys", [(False, False), (False, True), (True, False)])
def test_offline_every_command_has_its_own_run_in_one_group(tmp_path, monkeypatch, keys):
    trained = log_command(tmp_path, "fit", monkeypatch, keys[0], name="mine")
    tested = log_command(tmp_path, "test", monkeypatch, keys[1])
    assert trained.id != tested.id
    assert (trained.group, trained.name) == (tested.group, tested.name)
    assert (tested.name, tested.job_type, tested.offline) == ("mine", "test", True)


@pytest.mark.parametrize("name", [None, "mine"])
def test_the_settings_of_another_run_do_not_go_on_with_its_wandb_run(tmp_path, monkeypatch, name):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    trained = log_command(one, "fit", monkeypatch, name=name)
    kept = Namespace(class_path="rare_lightning.loggers.WandbRunLogger", init_args=trained.clone())
    trainer = Namespace(logger=[kept])
    log_into(trainer, other, "fit", origin=str(one))
    told = trainer.logger[1].init_args
    assert told.save_dir == str(other)
    assert told.name == (name or "other")
    assert told.group.startswith(f"{told.name}-")
    assert len({told.id, trained.id, None}) == 3
    assert told.group != trained.group


def test_a_key_that_is_refused_means_offline(monkeypatch, tmp_path, capsys):
    def refuse(prompt):
        raise ValueError("the key is not valid")

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(login=refuse, teardown=lambda: None))
    trainer = Namespace(logger=wandb_logger())
    log_into(trainer, tmp_path, "fit")
    assert trainer.logger[1].init_args.offline
    assert "not valid" in capsys.readouterr().out


def test_a_missing_extra_is_answered_with_its_install_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r'pip install "rare-lightning\[wandb\]"'):
        log_into(Namespace(logger=[wandb_logger()]), tmp_path, "fit")


def test_logging_can_be_switched_off(tmp_path):
    trainer = Namespace(logger=False)
    log_into(trainer, tmp_path, "fit")
    assert trainer.logger is False


def test_settings_are_those_that_a_run_last_went_on_with(tmp_path):
    assert settings_of_training(tmp_path) == {}
    for epochs in range(1, 12):  # config-11.yaml comes before config-2.yaml by name
        unused(tmp_path / "config.yaml").write_text(f"epochs: {epochs}")
    assert settings_of_training(tmp_path) == {"epochs": 11}


@pytest.mark.slow
def test_a_run_without_a_key_leaves_an_offline_record_beside_the_csv(phantom, tmp_path):
    words = ["fit", "--config", str(TINY), "--data.root", str(phantom), "--run_dir", str(tmp_path / "run")]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"HOME": str(tmp_path)}
    command = [sys.executable, "-m", "rare_lightning.cli", *words, "--trainer.logger", "WandbLogger"]
    ran = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 0, ran.stderr
    assert "logs offline" in ran.stdout
    [record] = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    assert record.stat().st_size > 0
    with open(tmp_path / "run" / "logs" / "fit" / "metrics.csv", newline="") as file:
        assert any(row["val/dice"] for row in csv.DictReader(file))
