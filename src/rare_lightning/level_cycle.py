"""Which levels each batch of a training is shown."""

from collections.abc import Sequence
from typing import Literal

LevelCycle = list[list[int]] | Literal["nested", "each"] | None


def make_level_cycle(cycle: LevelCycle, levels: Sequence[int]) -> list[list[int]]:
    """The levels of successive batches, see :class:`~rare_lightning.module.SegmentationModule`.

    Raises:
        ValueError: If a batch has no level, or one that is not among the levels.
    """
    if cycle == "nested":
        return [list(levels[first:]) for first in reversed(range(max(1, len(levels) - 1)))]
    if cycle == "each":
        return [[level] for level in levels]
    batches = [list(levels)] if cycle is None else [sorted(set(batch)) for batch in cycle]
    if not batches or any(not batch or not set(batch) <= set(levels) for batch in batches):
        raise ValueError(f"level_cycle {cycle} must be lists of one or more of the network's levels {list(levels)}")
    return batches
