"""How long the networks of several checkpoints take for a volume at each level, beside each other in one process."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Any, TypeVar

import torch

from rare_lightning.inference.segmenter import Segmenter
from rare_lightning.inference.windows import segment_level
from rare_lightning.networks.grids import Size3, cells

T = TypeVar("T")


@torch.inference_mode()
def time_forwards(segmenters: Mapping[str, Segmenter], size: Size3, repeats: int) -> dict[str, dict[int, float]]:
    """Median seconds of a forward on noise, the networks taking turns.

    Args:
        segmenters: By name; each segments the volume as it would a scan, in windows if it was trained on patches.
        size: Of the volume in voxels of level 0.
        repeats: Runs of each, after one that does not count.

    Returns:
        Name -> level -> seconds.
    """
    seconds: dict[str, dict[int, float]] = {name: {} for name in segmenters}
    for level in sorted({level for segmenter in segmenters.values() for level in segmenter.level_strides}):
        forwards = {
            name: _forward(segmenter, level, size)
            for name, segmenter in segmenters.items()
            if level in segmenter.level_strides
        }
        for name, measured in interleaved(forwards, repeats).items():
            seconds[name][level] = measured
    return seconds


def in_turns(tasks: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """What each task returns, run in turns so that a busy moment of the machine hits all alike.

    Args:
        tasks: By name.
        repeats: Runs of each, after one that does not count.
    """
    turns = [{name: task() for name, task in tasks.items()} for _ in range(repeats + 1)]
    return {name: [turn[name] for turn in turns[1:]] for name in tasks}


def interleaved(tasks: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median seconds of each task, see :func:`in_turns`."""
    timed = {name: partial(_seconds, task) for name, task in tasks.items()}
    return {name: median(seconds) for name, seconds in in_turns(timed, repeats).items()}


def _seconds(task: Callable[[], Any]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _forward(segmenter: Segmenter, level: int, size: Size3) -> Callable[[], Any]:
    stride = segmenter.level_strides[level]
    shape = segmenter.padded_size(level, cells(size, stride))
    image = torch.randn(1, len(segmenter.channels), *shape)
    return partial(segment_level, segmenter.networks[0], level, image, segmenter.window_size)
