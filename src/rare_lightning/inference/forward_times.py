"""How long the networks of several checkpoints take for a volume at each level, beside each other in one process."""

import time
from collections.abc import Mapping
from math import ceil
from statistics import median

import torch

from rare_lightning.inference.segmenter import Segmenter
from rare_lightning.inference.windows import segment_level
from rare_lightning.networks.grids import Size3, round_up


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
        alike = {name: segmenter for name, segmenter in segmenters.items() if level in segmenter.level_strides}
        runs: dict[str, list[float]] = {name: [] for name in alike}
        for _ in range(repeats + 1):  # in turns, so that a busy moment of the machine hits all alike
            for name, segmenter in alike.items():
                runs[name].append(_forward(segmenter, level, size))
        for name, measured in runs.items():
            seconds[name][level] = median(measured[1:])
    return seconds


def _forward(segmenter: Segmenter, level: int, size: Size3) -> float:
    stride, deepest = segmenter.level_strides[level], segmenter.level_strides[max(segmenter.level_strides)]
    shape = round_up(
        [ceil(n / s) for n, s in zip(size, stride, strict=True)],
        [whole // part for whole, part in zip(deepest, stride, strict=True)],
    )
    image = torch.randn(1, len(segmenter.channels), *shape)
    started = time.perf_counter()
    segment_level(segmenter.networks[0], level, image, segmenter.window_size)
    return time.perf_counter() - started
