"""What a figure must name beside it: command, commit, versions, hardware, seed."""

import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

FOLDERS = re.compile(r"""(?<=[=\[{(,"' ])/(?:[^,"'\]})]*/)?(?=[^/])""")
"""Those of an absolute path that is the value of an option, or stands in a list."""

PACKAGES = ("rare-lightning", "torch", "lightning", "torchio", "monai", "pytorch-optimizer")


def describe_process() -> dict[str, Any]:
    """Command, seed, commit, versions and hardware of this process; plain values."""
    return {
        "command": command_line(),
        "seed": run_seed(),
        "commit": _commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "hardware": _hardware(),
    }


def command_line() -> str:
    """Words that this process was started with."""
    return shlex.join(map(_without_folders, sys.argv))


def run_seed() -> int | None:
    """What ``seed_everything`` was given, alike in all processes of a run; None where it was not called."""
    return int(seed) if (seed := os.environ.get("PL_GLOBAL_SEED")) else None


def _without_folders(word: str) -> str:
    """Absolute paths lose their folders: records get published, and those are nobody else's business."""
    if word.startswith("/"):
        return Path(word).name
    return FOLDERS.sub("", word)


def peak_memory_gib() -> float | None:
    """Most memory that the tensors on a GPU held so far, or this process where it uses none; None on Windows."""
    used = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    if any(used):  # a run on the processor may have GPUs beside it
        return max(used) / 2**30
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def cpu_minutes() -> float:
    """Processor time of this process and its children up to now, in minutes: what a run costs on a busy machine too."""
    own = psutil.Process()
    seconds = sum(own.cpu_times()[:4])  # in user and system mode, and of children that have ended
    for child in own.children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # ended meanwhile
            seconds += sum(child.cpu_times()[:2])
    return float(seconds) / 60


def _commit() -> str | None:
    """Commit of the source tree that runs, ``-modified`` if files differ from it; None where no repository has it."""
    # As an environment within another's repository is not.
    tracked = _git("ls-files", "--error-unmatch", Path(__file__).name)
    return tracked and _git("describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=-modified")


def _git(*words: str) -> str | None:
    """What git says in the folder of this file; None if it fails."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()


def _hardware() -> str:
    threads = torch.get_num_threads()
    processors = f"{os.cpu_count()} CPU cores ({_processor()}), {threads} {'thread' if threads == 1 else 'threads'}"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "; ".join([processors, *gpus])


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
