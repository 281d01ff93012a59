"""Which level a scan enters at, and which grids it fills, from its voxel spacing in mm and never from its shape."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, fsum, log
from typing import Literal, get_args

from rare_lightning.data.geometry import format_spacing
from rare_lightning.networks.grids import Size3, Spacing, is_spacing, level_spacing, triple

RoutingStrategy = Literal["detail", "mean", "finest"]
NEARLY = 0.1  # octaves, 7 %: a scan that is this much finer than a level still enters there
TOLERANCE = 1e-3  # of a spacing: what headers round away is not resampled, as in training


@dataclass(frozen=True)
class Route:
    """Where a scan enters, and what is done to it before.

    Attributes:
        level: Entry level.
        spacing: Spacing in mm that the scan is brought to: the level's, or the scan's own along axes where they differ
            by no more than a header's rounding.
        note: The decision in words.
    """

    level: int
    spacing: Spacing
    note: str


@dataclass(frozen=True)
class FinestGrids:
    """The finest grids that a scan and its label fill.

    Attributes:
        level: That the scan enters at.
        image_stride: Of that level.
        label_stride: Of the label's grid: along each axis the largest of a level that is coarser neither than the scan
            nor than its level. A label in thick slices keeps its detail within them.
    """

    level: int = 0
    image_stride: Size3 = (1, 1, 1)
    label_stride: Size3 = (1, 1, 1)


FULL = FinestGrids()  # what a scan of the base spacing fills


def finest_grids(spacing: Spacing, base_spacing: Spacing, strides: Sequence[Size3]) -> FinestGrids:
    """Of a scan of this spacing in mm.

    Args:
        spacing: Along the canonical axes.
        base_spacing: Of level 0.
        strides: Cumulative stride of each level.
    """
    routed = route(spacing, base_spacing, dict(enumerate(strides))).level
    level = strides.index(strides[routed])  # a stage may have no stride
    label = triple(
        max(s[axis] for s in strides[: level + 1] if s[axis] == 1 or s[axis] * base <= mm * (1 + TOLERANCE))
        for axis, (mm, base) in enumerate(zip(spacing, base_spacing, strict=True))
    )
    return FinestGrids(level, strides[level], label)


def route(
    spacing: Spacing,
    base_spacing: Spacing,
    level_strides: Mapping[int, Size3],
    routing: RoutingStrategy = "detail",
    level: int | None = None,
) -> Route:
    """Choose the entry level.

    Args:
        spacing: Of the scan in mm, along the canonical axes.
        base_spacing: Of level 0 in mm.
        level_strides: Cumulative stride of each level that can be entered.
        routing: ``detail`` takes the coarsest level that loses no detail of the scan along any axis; or, where that
            would stretch an axis to more than twice as many voxels, the finest level that does not. ``mean`` takes the
            level that is nearest on a logarithmic scale, averaged over the axes (for equal strides: by the geometric
            mean of the spacing); ``finest`` the level that is nearest to the finest axis. Both enter scans
            between the levels deeper, which is faster. They are less accurate than ``detail`` where the network was
            trained on such scans (``data.random_spacing``); where it was not, ``mean`` is more accurate
            (docs/results.md, spacings).
        level: This level, whatever the spacing.

    Raises:
        ValueError: If there is no such level or routing, or the spacing is not three positive numbers.
    """
    if not is_spacing(spacing):
        raise ValueError(f"a spacing must be three positive numbers of mm: {[*spacing]}")
    if level is not None and level not in level_strides:
        raise ValueError(f"level ({level}) must be one of {sorted(level_strides)}, the levels of the model")
    grids = {entry: level_spacing(base_spacing, stride) for entry, stride in level_strides.items()}
    offsets = {
        entry: [log(mm / target) for mm, target in zip(spacing, grid, strict=True)] for entry, grid in grids.items()
    }
    if level is not None:
        chosen, why = level, "as asked for"
    elif routing == "detail":
        chosen, why = _by_detail(offsets)
    elif routing == "mean":
        chosen, why = min(offsets, key=lambda entry: abs(fsum(offsets[entry]))), "nearest"
    elif routing == "finest":
        chosen, why = min(offsets, key=lambda entry: abs(min(offsets[entry]))), "nearest to the finest axis"
    else:
        raise ValueError(f"routing ({routing}) must be one of {', '.join(get_args(RoutingStrategy))}")
    offset, target = offsets[chosen], unless_rounded(spacing, grids[chosen])
    beyond = ""
    if level is None and chosen == min(grids) and exp(min(offset)) < 1 - TOLERANCE and fsum(offset) < 0:
        beyond = f", the scan is finer than level {chosen}"
    if level is None and chosen == max(grids) and exp(max(offset)) > 1 + TOLERANCE and fsum(offset) > 0:
        beyond = ", the scan is coarser than the last level"
    what = "no resampling" if target == spacing else f"resampled to {format_spacing(target)} mm"
    return Route(chosen, target, f"{format_spacing(spacing)} mm enters at level {chosen} ({why}{beyond}), {what}")


def unless_rounded(spacing: Sequence[float], wanted: Sequence[float]) -> Spacing:
    """The wanted spacing, or a scan's own along axes where they differ by no more than a header's rounding."""
    return triple(mm if abs(mm / new - 1) < TOLERANCE else new for mm, new in zip(spacing, wanted, strict=True))


def _by_detail(offsets: Mapping[int, Sequence[float]]) -> tuple[int, str]:
    """The coarser of two levels: the coarsest that loses no detail, and the finest that stretches no axis beyond twice.

    Args:
        offsets: Level -> logarithm of scan spacing over level spacing, per axis.

    Returns:
        Level, and why.
    """
    nearly = NEARLY * log(2)
    no_loss = [level for level, offset in offsets.items() if min(offset) >= -nearly]
    no_stretch = [level for level, offset in offsets.items() if max(offset) <= log(2) + nearly]
    chosen = max(max(no_loss, default=min(offsets)), min(no_stretch, default=max(offsets)))
    if chosen in no_loss:
        return chosen, "keeps its detail"
    if chosen == min(offsets):
        return chosen, "the finest level"
    return chosen, "stretches no axis beyond twice" if chosen in no_stretch else "the coarsest level"
