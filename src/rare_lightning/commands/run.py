"""Runs a command, and answers what goes wrong with one line."""

import errno
import logging
import sys
import warnings

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException

from rare_lightning.commands.tools import TOOLS, parser_of
from rare_lightning.commands.training import train
from rare_lightning.errors import UserError
from rare_lightning.processes import explain_loss

NO_MEMORY = "can't allocate memory"
"""What PyTorch says on a CPU; on a GPU it has an error of its own."""

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
    try:
        if name in TOOLS:
            TOOLS[name](**parser_of(name, purpose).parse_args(words[len(name.split()) :]).as_dict())
        else:
            train(words, purpose)
    except UserError as error:
        print(f"rare: error: {error}", file=sys.stderr)
        return 1
    except ArgumentError as error:
        return _report_wrong_words(name, error)
    except MisconfigurationException as error:  # Lightning's, of a device that is not there
        print(f"rare: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except OSError as error:
        message = f"{error.filename}: {error.strerror}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = (
                f"{error.filename or 'a file'}: cannot be written ({error.strerror}). Make room; rare fit goes on from "
                "its last checkpoint with the same command and --resume."
            )
        elif error.filename is None:
            raise
        print(f"rare: error: {message}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        explanation = _explain(error, name)
        if explanation is None:
            raise
        print(f"rare: error: {explanation}", file=sys.stderr)
        return 1
    return 0


def _explain(error: RuntimeError, command: str) -> str | None:
    """The line for an error of PyTorch or Lightning that settings can mend, or that another process had; else None."""
    message = " ".join(str(error).split())
    if command not in TOOLS and (isinstance(error, torch.OutOfMemoryError) or NO_MEMORY in message):
        return (
            f"out of memory ({message}). Give a smaller --data.patch_size, which whole volumes are segmented in "
            "windows of too, a smaller --data.batch_size, which --trainer.accumulate_grad_batches makes up for, or "
            "--trainer.precision bf16-mixed; a run that has a checkpoint goes on with them by --ckpt_path and a new "
            "--run_dir"
        )
    return message if message.startswith(UNKNOWN_METRIC) else explain_loss(error)


def _report_wrong_words(command: str, error: ArgumentError) -> int:
    """One line, where argparse prints pages of options. Returns the exit code."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):  # met while a setting was derived from another
        cause = cause.__cause__ or cause.__context__
    message = cause or f"{' '.join(str(error).split())} (options: rare {command} --help)"
    print(f"rare: error: {message}", file=sys.stderr)
    return 1 if cause else 2


def _silence_noise() -> None:
    """Messages of libraries about themselves, which users can do nothing about."""
    # Lightning and TorchIO call deprecated functions of torch, jsonargparse and one another.
    for category in (DeprecationWarning, FutureWarning):
        warnings.simplefilter("ignore", category)
    for message in (
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
