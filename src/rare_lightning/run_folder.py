"""The folder that a run writes into, and the loggers that write there."""

import os
from datetime import datetime
from pathlib import Path

from jsonargparse import Namespace

from rare_lightning.errors import UserError


def run_folder(requested: str | None, checkpoint: str | None) -> Path:
    """The requested folder, else that of the checkpoint's run, else a new one under ``runs``."""
    if requested is not None:
        return Path(requested).expanduser()
    if checkpoint is not None:
        folder = Path(checkpoint).expanduser().parent
        return folder.parent if folder.name == "checkpoints" else folder
    return Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def refuse_folder_in_use(folder: Path, checkpoint: str | None) -> None:
    """A run never mixes with an earlier one, unless it goes on from that one's checkpoint.

    Raises:
        UserError: If the folder holds something else.
    """
    resumes = checkpoint is not None and folder.resolve() in Path(checkpoint).resolve().parents
    if folder.exists() and any(folder.iterdir()) and not resumes:
        raise UserError(
            f"{folder}: this run folder is in use. Choose another --run_dir, or go on with it by "
            f"--ckpt_path {folder}/checkpoints/last.ckpt"
        )


def log_into(trainer: Namespace, folder: Path, subcommand: str) -> None:
    """Have the Trainer's configured loggers write into the run folder, CSV files always among them.

    CSVLogger empties its own folder, so each command of a run gets a new one.
    """
    if trainer.logger is False:
        return
    version = unused(folder / "logs" / subcommand).name
    settings = {"save_dir": str(folder), "name": "logs", "version": version, "prefix": ""}
    csv = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {**settings, "flush_logs_every_n_steps": 100},
    }
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    loggers = [logger for logger in configured if isinstance(logger, Namespace)]
    for logger in loggers:
        if logger.class_path.endswith(".WandbLogger"):
            _log_to_wandb(logger.init_args, folder)
    trainer.logger = [csv, *loggers]


def unused(path: Path) -> Path:
    """``path``, or ``config-2.yaml`` and so on if it exists."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


def _log_to_wandb(settings: Namespace, folder: Path) -> None:
    """Into the run folder, and offline where there is no key: a prompt would hang an unattended run."""
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise UserError("Weights & Biases is not installed: pip install 'rare-lightning[wandb]'") from error
    if settings.save_dir == ".":
        settings.save_dir = str(folder)
    if not settings.offline and os.environ.get("WANDB_MODE", "online") == "online":
        settings.offline = not wandb.login(prompt=False)
        if settings.offline:
            wandb.teardown()  # it has settled on being online
            print(f"No Weights & Biases key: logging offline. Later: wandb login && wandb sync {folder}/wandb/*-run-*")
