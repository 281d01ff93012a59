"""The processes of a distributed run: what each of them found, and how one that dies takes the others with it."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

PARENT_POLL_SECONDS = 5.0
"""How often a process looks whether the one that started it is still there."""


def gather(mine: Any) -> list[Any]:
    """What every process of the run has, in order of rank; every process must call this."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


@contextmanager
def sigterm_before_loaders(trainer: L.Trainer) -> Iterator[None]:
    """Context: a job's end is reported as that, and not as the loss of its loaders.

    SIGTERM ends loader processes too, and torch complains of those before Lightning tells of the signal.

    Raises:
        SIGTERMException: Lightning's, in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if trainer.received_sigterm:
            raise SIGTERMException from error
        raise


def end_with_parent() -> None:
    """Have this process end when the one that started it does: the others' collectives may wait for it for long."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_SECONDS)
        print("rare: error: the process that started this one has ended, and so does this", file=sys.stderr, flush=True)
        os._exit(1)  # the main thread may be waiting for good

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
