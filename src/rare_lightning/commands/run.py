"""Runs a command, and answers what goes wrong with one line."""

import errno
import logging
import os
import re
import signal
import sys
import warnings

import torch
import torch.distributed as dist
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from rare_lightning.commands.tools import TOOLS, parser_of
from rare_lightning.commands.training import train
from rare_lightning.errors import UserError
from rare_lightning.processes import end_with_parent

GOES_ON = {
    "fit": "rare fit goes on from its last checkpoint with the same command and --resume.",
    "predict": "rare predict goes on with the same command and --resume.",
}
"""What to do about a command that could not end."""

NO_MEMORY = "can't allocate memory"
"""What PyTorch says on a CPU; on a GPU it has an error of its own."""

NO_NETWORK = "required: {}.model.network"
"""What jsonargparse says of a command without a configuration."""

HINTS = {
    "fit": "Give --config, such as configs/hippocampus.yaml",
    "validate": "Give --ckpt_path, a checkpoint of rare fit, which knows them",
    "test": "Give --ckpt_path, a checkpoint of rare fit, which knows them",
}
"""What it needs."""

NO_HOME = "Could not determine home directory"
"""What pathlib says of a path."""

KEY = re.compile(r'Parser key "(.+?)": ')
OF_CLASS = re.compile(r".*Problem with given class_path '(.+?)': (.+?)(?: - Expected .*)?")
OF_TYPES = re.compile(
    r"(?:.*? )?Subtypes: \[(.+?)\] Errors: .*? Given value: (.*?)(?: - Expected .*|\. Got value: .*)?|"
    r"Expected an? (.+?)\. Got value: (.*)"
)
NO_CLASS = re.compile(r".*Expected a dot import path string: (.*)")
"""jsonargparse: which setting, what a class does not take, a value of another type, and no class at all."""

EXAMPLES = {"model.network": "rare_lightning.RAREUNet", "model.optimizer": "torch.optim.AdamW"}
"""Of classes."""

LOST_LOADER = "DataLoader worker (pid"
"""PyTorch, whichever way it learns of it."""

LOST_PROCESS = re.compile(
    r"closed by peer|reset by peer|broken pipe|timed out|remote worker|NCCL|ncclRemoteError", re.IGNORECASE
)
"""What gloo and NCCL say when another process does not answer."""

UNKNOWN_METRIC = "Early stopping conditioned on metric"
"""Lightning, of a callback that monitors what nothing logs."""


def run(name: str, purpose: str, words: list[str]) -> int:
    """Run a command; returns the exit code.

    Args:
        name: Of the command.
        purpose: For its help.
        words: Of the command line, those of the name first.
    """
    _silence_noise()
    if "LOCAL_RANK" in os.environ:  # started by the first process of its machine, by torchrun or another launcher
        end_with_parent()
    try:
        if name in TOOLS:
            TOOLS[name](**parser_of(name, purpose).parse_args(words[len(name.split()) :]).as_dict())
        else:
            train(words, purpose)
    except SIGTERMException:  # which Lightning would end with exit code 0
        return _ended_by(signal.SIGTERM, name)
    except KeyboardInterrupt:
        return _ended_by(signal.SIGINT, name)
    except SystemExit as ending:
        if isinstance(ending.__context__, KeyboardInterrupt):  # Lightning's answer to it
            return _ended_by(signal.SIGINT, name)
        raise
    except Exception as error:
        code, line = _answer(error, name)
        if line is None:
            raise
        print(f"rare: error: {line}", file=sys.stderr)
        return code
    return 0


def _ended_by(cause: signal.Signals, command: str) -> int:
    """Exit code of a process that this signal ends, and a line."""
    print(f"rare: error: ended by {cause.name}. {GOES_ON.get(command, '')}".rstrip(), file=sys.stderr)
    return 128 + cause


def _answer(error: Exception, command: str) -> tuple[int, str | None]:
    """Exit code and line. Not in :func:`run`, whose frame the error holds: it would live on with what it has open."""
    mistake = _mistake_behind(error)
    return 2 if isinstance(mistake, ArgumentError) else 1, _line_for(mistake, command)


def _mistake_behind(error: BaseException) -> BaseException:
    """What was met while the parser derived one setting from another; else the error itself."""
    cause: BaseException | None = error if isinstance(error, ArgumentError) else None
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    return cause or error


def _line_for(error: BaseException, command: str) -> str | None:
    """What to print of an error that a user can mend; None of others."""
    message = " ".join(str(error).split())
    if isinstance(error, UserError):  # of a loader process, with its traceback before
        return str(error).rpartition("UserError: ")[2].strip()
    if isinstance(error, ArgumentError):  # argparse would print pages of options
        return f"{_in_words(message, command)} (options: rare {command} --help)"
    if isinstance(error, MisconfigurationException):  # Lightning's, of a device that is not there
        return message
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            then = GOES_ON.get(command, "")
            return f"{error.filename or 'a file'}: cannot be written ({error.strerror}). Make room. {then}".rstrip()
        return None if error.filename is None else f"{error.filename}: {error.strerror}"
    if not isinstance(error, RuntimeError):
        return None
    if message.startswith(NO_HOME):
        return f"{message}: ~NAME is the home of a user that there is not"
    if command not in TOOLS and (isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in message):
        return (
            f"out of memory ({message}). Give a smaller --data.patch_size, which whole volumes are segmented in "
            "windows of too, a smaller --data.batch_size, which --trainer.accumulate_grad_batches makes up for, or "
            "--trainer.precision bf16-mixed; a run that has a checkpoint goes on with them by --ckpt_path and a new "
            "--run_dir"
        )
    if message.startswith(LOST_LOADER):
        return (
            f"a loader process was killed ({message}): memory, or what /dev/shm has of it, may be full. Give a smaller "
            f"--data.num_workers, 0 for no such process. {GOES_ON.get(command, '')}".rstrip()
        )
    # Of another process, or of a callback that monitors what nothing logs.
    return message if message.startswith(UNKNOWN_METRIC) else _explain_loss(error)


def _in_words(message: str, command: str) -> str:
    """What jsonargparse says of a word of the command line, without its own terms."""
    if NO_NETWORK.format(command) in message and command in HINTS:
        return f"{message}. {HINTS[command]}"
    *_, rest = KEY.split(message)  # settings of settings come last
    name = ".".join(KEY.findall(message))
    if match := OF_CLASS.fullmatch(rest):
        return f"{name}: {match[1]}: {match[2]}"
    if match := OF_TYPES.fullmatch(rest):
        types, value = (one or other for one, other in zip(match.groups()[:2], match.groups()[2:], strict=True))
        kinds = re.sub(r"<class '(?:[^']*\.)?(\w+)'>|typing\.|collections\.abc\.", r"\1", types)
        return f"{name} is {value}, and must be one of: {kinds.replace('NoneType', 'null')}"
    if match := NO_CLASS.fullmatch(rest):
        example = EXAMPLES.get(name, "package.Class")
        return f"{name}: there is no class {match[1]}. Give its import path, such as {example}"
    return message


def _explain_loss(error: RuntimeError) -> str | None:
    """The line for an error that tells that another process of the run is gone; None for any other."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None
    if not isinstance(error, dist.DistError) and not LOST_PROCESS.search(str(error)):
        return None
    return (
        f"process {dist.get_rank()} of {dist.get_world_size()} lost another one, which may have said why, or was "
        f"killed (out of memory?). {GOES_ON['fit']}"
    )


def _silence_noise() -> None:
    """Messages of libraries about themselves, which users can do nothing about."""
    # Lightning and TorchIO call deprecated functions of torch, jsonargparse and one another.
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for message in (
        # Metrics of an epoch are logged all the same.
        ".*smaller than the logging interval",
        # One loader process is enough here: cases are cached.
        ".*does not have many workers",
        # A callback that only training needs, such as early stopping, is not missed in a test.
        ".*callbacks used to create the checkpoint need to be provided",
        # Run folders may be moved, and gone on with: a folder that another run uses was refused before.
        "The dirpath has changed from",
        # Losses of training are the first process's; Dice is brought together by its metric.
        "It is recommended to use .*sync_dist=True",
        "Checkpoint directory .* exists and is not empty",
        # It prints parameters all the same; only their size in memory is that of full precision.
        "Precision .* is not supported by the model summary",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "for seamless cloud" not in record.getMessage().lower())
