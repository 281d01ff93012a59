"""The folder that a run writes into, and the loggers that write there."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from rare_lightning.errors import UserError, require
from rare_lightning.files import numbered, unused

MODULE = "rare_lightning.loggers."
LOCK = ".lock"
CSV_FOLDER = "logs"
OF_BEGUN = {LOCK, CSV_FOLDER, "wandb", "tensorboard"}
"""What a run leaves that ends before it has trained anything, beside ``config.yaml`` and ``splits.json``."""

SECONDS_TO_END = 15.0
"""That processes of a run that was killed may take to see so; they hold its lock until then."""

OURS = {"WandbLogger": "WandbRunLogger", "TensorBoardLogger": "TensorBoardRunLogger"}  # instead of Lightning's


def run_folder(requested: str | None, checkpoint: str | None) -> Path:
    """The requested folder, else that of the checkpoint's run, else a new one under ``runs``."""
    if requested is not None:
        return Path(requested).expanduser()
    if checkpoint is not None:
        folder = Path(checkpoint).expanduser().parent
        return folder.parent if folder.name == "checkpoints" else folder
    return Path("runs") / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def refuse_folder_in_use(folder: Path, checkpoint: str | None) -> None:
    """A run never mixes with an earlier one, unless that one has trained nothing, or it goes on from its checkpoint.

    Raises:
        UserError: If the folder holds something else.
    """
    resumes = checkpoint is not None and folder.resolve() in Path(checkpoint).resolve().parents
    names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    begun = OF_BEGUN | {name for name in names if name.startswith(("config", "splits"))}
    if names - begun and not resumes:
        raise UserError(
            f"{folder}: this run folder holds a run. Choose another --run_dir, or go on with its run: the same command "
            "with --resume"
        )


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Context: no other ``rare fit`` writes into the run folder, on this machine or a shared disk.

    Raises:
        UserError: If another one does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=SECONDS_TO_END)
    except Timeout:
        raise UserError(f"{folder}: another rare fit writes into this run folder. Choose another --run_dir") from None
    except (OSError, NotImplementedError) as error:  # a disk that knows no locks
        rank_zero_info(f"{folder}: cannot be kept from another rare fit that writes into it ({error})")
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)  # while held: who waits for it sees that and makes a new one
            lock.release()
        with suppress(OSError):  # it holds something
            folder.rmdir()


def log_into(trainer: Namespace, folder: Path, subcommand: str, origin: str | None = None) -> None:
    """Have the Trainer's configured loggers write into the run folder, CSV files always among them.

    Validation and test go to the loggers of the run's training where they are given none.
    CSVLogger empties its own folder, so each command of a run gets a new one.

    Args:
        trainer: Its settings, whose loggers are changed.
        folder: Of the run.
        subcommand: That logs.
        origin: Folder of the run whose ``config.yaml`` the settings are from: what that run's loggers were told there
            is not what these shall be told.

    Raises:
        UserError: If the package of a logger is not installed.
    """
    if trainer.logger is False:
        return
    version = unused(folder / "logs" / subcommand).name
    settings = {"save_dir": str(folder), "name": CSV_FOLDER, "version": version, "prefix": ""}
    csv = {
        "class_path": "lightning.pytorch.loggers.CSVLogger",
        "init_args": {**settings, "flush_logs_every_n_steps": 100},
    }
    configured = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    loggers = [logger for logger in configured if isinstance(logger, Namespace) and not _is_csv_of_run(logger)]
    earlier = _loggers_of_training(folder)
    if not loggers and subcommand != "fit":
        loggers = list(earlier.values())
    for logger in loggers:
        kind = next((kind for name, kind in OURS.items() if logger.class_path.endswith((f".{name}", f".{kind}"))), None)
        if kind == "WandbRunLogger":
            if origin is not None and logger.init_args.save_dir == origin:
                _forget_run(logger.init_args)
            _log_to_wandb(logger.init_args, folder, subcommand, earlier.get(kind))
        elif kind == "TensorBoardRunLogger":
            require("tensorboard", "tensorboard")
            for word, value in (("save_dir", str(folder)), ("name", "tensorboard"), ("version", version)):
                logger.init_args[word] = value
        else:
            continue
        logger.class_path = f"{MODULE}{kind}"
    trainer.logger = [csv, *loggers]


def settings_of_training(folder: Path) -> dict[str, Any]:
    """Every setting that the run in this folder last went on with; none where no ``config.yaml`` can be read."""
    written = list(takewhile(Path.exists, numbered(folder / "config.yaml")))
    try:
        settings = yaml.safe_load(written[-1].read_text(encoding="utf-8")) if written else None
    except (OSError, yaml.YAMLError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _loggers_of_training(folder: Path) -> dict[str, Namespace]:
    """Class name -> each of our loggers that the run in this folder was begun with."""
    try:
        loggers = settings_of_training(folder)["trainer"]["logger"] or []
        named = {logger["class_path"]: logger for logger in loggers}
    except (KeyError, TypeError):  # no run, or one without loggers
        return {}
    return {path[len(MODULE) :]: dict_to_namespace(named[path]) for path in named if path.startswith(MODULE)}


def _is_csv_of_run(logger: Namespace) -> bool:
    return bool(logger.class_path.endswith(".CSVLogger") and logger.init_args.get("name") == CSV_FOLDER)


def _forget_run(settings: Namespace) -> None:
    """Leave of W&B settings what was given, and not what another run in their folder was called."""
    if re.fullmatch(rf"{re.escape(settings.name or '')}-[0-9a-f]{{8}}", settings.get("group") or ""):
        settings.group = None
    if settings.name == Path(settings.save_dir).resolve().name:
        settings.name = None
    settings.save_dir = settings.id = settings.version = None


def _log_to_wandb(settings: Namespace, folder: Path, subcommand: str, training: Namespace | None) -> None:
    """Into the run folder, and offline where there is no key: a prompt would hang an unattended run.

    Online, all commands of a run folder go on with one W&B run. Offline each has its own, in one group: those under
    one id would overwrite each other on the server.
    """
    require("wandb", "wandb")
    if settings.save_dir in (".", None):
        settings.save_dir = str(folder)
    mode = os.environ.get("WANDB_MODE", "online")
    if not settings.offline and mode == "online":
        settings.offline = not _has_wandb_key()
    elif mode in ("offline", "dryrun"):
        settings.offline = True
    if settings.offline:
        _say(f"Weights & Biases logs offline. Later: wandb login && wandb sync {settings.save_dir}/wandb/offline-run-*")
    earlier = training.init_args.as_dict() if training else {}
    goes_on = not settings.offline and earlier.get("offline") is False
    inherited = training is not None and settings is training.init_args
    fresh = secrets.token_hex(4)
    given = None if inherited else settings.version or settings.id
    settings.id = given or (earlier["id"] if goes_on else fresh)
    settings.name = settings.name or earlier.get("name") or folder.resolve().name
    settings.project = settings.project or earlier.get("project") or os.environ.get("WANDB_PROJECT", "rare-lightning")
    settings.group = settings.get("group") or earlier.get("group") or f"{settings.name}-{fresh}"
    settings.job_type = earlier["job_type"] if goes_on else subcommand


def _has_wandb_key() -> bool:
    import wandb

    try:
        known: bool = wandb.login(prompt=False)
    except Exception as error:  # a key that the server refuses, or no server
        _say(f"Weights & Biases: {' '.join(str(error).split())}")
        known = False
    if not known:
        wandb.teardown()  # it has settled on being online
    return known


@rank_zero_only
def _say(line: str) -> None:
    print(line)
