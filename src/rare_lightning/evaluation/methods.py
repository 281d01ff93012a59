"""Tests that ``rare test`` or another program wrote, read to be compared, and refused if they cannot be."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from rare_lightning.data.geometry import format_spacing
from rare_lightning.errors import UserError, few
from rare_lightning.evaluation.protocol import TRUTHS, Row, Truth
from rare_lightning.evaluation.tables import read_cases, same_spacing
from rare_lightning.networks.grids import Spacing


@dataclass(frozen=True)
class Method:
    """What a test left of a method.

    Attributes:
        name: In tables and figures.
        path: Its ``cases.csv``.
        rows: Of that file.
        summary: Of the ``summary.json`` beside it; empty without one.
    """

    name: str
    path: Path
    rows: list[Row]
    summary: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """Where ``rare fit`` put the network, if the folder is one of its runs."""
        return _run_of(self.path) / "checkpoints" / "best.ckpt"

    @property
    def slices(self) -> Path:
        """Where ``rare test`` put the slices of its cases."""
        return self.path.with_name("slices.npz")

    @property
    def truths(self) -> set[Truth]:
        """What it was scored against."""
        return {row.truth for row in self.rows}

    @property
    def spacings(self) -> dict[tuple[str, int], Spacing]:
        """Case and level -> spacing in mm."""
        return {(row.case, row.level): row.spacing_mm for row in self.rows}


def read_methods(runs: Sequence[str]) -> list[Method]:
    """Methods by ``PATH`` or ``NAME=PATH``: run folders, folders that hold ``cases.csv``, or such files.

    Raises:
        UserError: If there are fewer than two, a name is given twice, or a file cannot be read.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs two runs or more")
    methods: list[Method] = []
    for run in runs:
        name, equals, rest = run.partition("=")
        given = bool(equals) and not Path(run).expanduser().exists()
        path = _cases_of(Path(rest if given else run).expanduser())
        name = name if given else _run_of(path.resolve()).name
        if name in (method.name for method in methods):
            raise UserError(f"two runs are called {name}: give one another name, as in OTHER={rest if given else run}")
        rows = read_cases(path)
        _refuse_incomplete(path, rows)
        methods.append(Method(name, path, rows, _summary_beside(path)))
    return methods


def _cases_of(path: Path) -> Path:
    if path.is_file():
        return path
    candidates = [path / "test" / "cases.csv", path / "cases.csv"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{path}: holds no test/cases.csv or cases.csv: rare test --ckpt_path {path}/checkpoints/best.ckpt makes it"
        if path.is_dir()
        else f"{path}: no such run folder or cases.csv"
    )


def _run_of(cases: Path) -> Path:
    """Run folder of a ``cases.csv``."""
    return cases.parents[1] if re.fullmatch(r"test(-\d+)?", cases.parent.name) else cases.parent


def _summary_beside(cases: Path) -> dict[str, Any]:
    path = cases.with_name("summary.json")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    parts = ("protocol", "training", "test")
    if not isinstance(summary, dict) or not all(isinstance(summary.get(part) or {}, dict) for part in parts):
        raise UserError(f"{path}: not a summary.json of rare test")
    return {name: value for name, value in summary.items() if value is not None}


def _refuse_incomplete(path: Path, rows: Sequence[Row]) -> None:
    """Every case must have one line for every truth and class, and one spacing, at each level that it has."""
    if not rows:
        raise UserError(f"{path}: holds no cases")
    keys = [(row.case, row.level, row.truth, row.class_name) for row in rows]
    _, _, truths, classes = (list(dict.fromkeys(column)) for column in zip(*keys, strict=True))
    seen = set(keys)
    for (case, level), truth, name in product(dict.fromkeys(key[:2] for key in keys), truths, classes):
        if (case, level, truth, name) not in seen:
            raise UserError(f"{path}: has no line for case {case}, level {level}, truth {truth}, class {name}")
    if len(seen) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise UserError(f"{path}: has two lines for case {twice[0]}, level {twice[1]}, truth {twice[2]}, {twice[3]}")
    spacings = {(row.case, row.level): row.spacing_mm for row in rows}
    for row in rows:
        if row.spacing_mm != spacings[row.case, row.level]:
            raise UserError(f"{path}: case {row.case} has several spacings at level {row.level}; a scan has one")


def shared_truths(methods: Sequence[Method]) -> list[Truth]:
    """Those that all methods were scored against: ``rare evaluate`` and other programs have the ``fine`` one only."""
    return [truth for truth in TRUTHS if all(truth in method.truths for method in methods)]


def shared_levels(methods: Sequence[Method]) -> list[int]:
    """Those that all methods were tested at: a tool for one resolution may know level 0 only."""
    return sorted(set.intersection(*({row.level for row in method.rows} for method in methods)))


def refuse_different(methods: Sequence[Method]) -> None:
    """Refuse methods whose tables cannot be laid beside the first one's.

    Raises:
        UserError: If they differ in cases, classes, spacings or protocol, or have no truth or level in common.
    """
    truths, levels = shared_truths(methods), shared_levels(methods)
    if not truths:
        scored = "; ".join(f"{method.name} against {', '.join(sorted(method.truths))}" for method in methods)
        raise UserError(f"no truth is common to all: {scored}. To compare them, score all by rare evaluate")
    if not levels:
        tested = "; ".join(f"{m.name} at {', '.join(map(str, sorted({r.level for r in m.rows})))}" for m in methods)
        raise UserError(f"no level is common to all: {tested}. To compare them, test all at some of the same levels")
    one = methods[0]
    for other in methods[1:]:
        spacings, other_spacings = (
            {(case, level): mm for (case, level), mm in method.spacings.items() if level in levels}
            for method in (one, other)
        )
        at_levels, others_at = (
            {f"{case} at level {level}" for case, level in each} for each in (spacings, other_spacings)
        )
        own_levels = "test both with the same data.spacing and data.upsample, or score both by rare evaluate"
        for what, advice, mine, theirs in (
            ("cases", "test both on one split (data.splits_file)", *_columns(one, other, "case")),
            ("levels of cases", own_levels, at_levels, others_at),
            ("classes", "test both on the same task and data.regions", *_columns(one, other, "class_name")),
        ):
            if mine != theirs:
                lacks = [
                    f"{method.name} lacks {few(map(str, sorted(missing)))}"
                    for method, missing in ((other, mine - theirs), (one, theirs - mine))
                    if missing
                ]
                raise UserError(
                    f"{one.name} and {other.name} were tested on different {what}: {'; '.join(lacks)}. To compare "
                    f"them, {advice}"
                )
        for (case, level), spacing in spacings.items():
            if not same_spacing(spacing, other_spacings[case, level]):
                mm, other_mm = format_spacing(spacing), format_spacing(other_spacings[case, level])
                raise UserError(
                    f"case {case} at level {level} is {mm} mm in {one.name} and {other_mm} mm in {other.name}. To "
                    "compare them, train both with the same data.spacing and data.strides"
                )
    for one, other in product(methods, repeat=2):  # not only the first's: it may have no summary.json
        mine, theirs = one.summary.get("protocol", {}), other.summary.get("protocol", {})
        for rule in sorted(mine.keys() & theirs.keys()):
            # Full-resolution labels are not brought down.
            if mine[rule] != theirs[rule] and (rule != "label_downsampling" or "level" in truths):
                raise UserError(
                    f"{one.name} and {other.name} were scored by different protocols: {rule} is {mine[rule]} and "
                    f"{theirs[rule]}. To compare them, test both with the same one"
                )


def _columns(one: Method, other: Method, column: str) -> tuple[set[Any], set[Any]]:
    mine, theirs = ({getattr(row, column) for row in method.rows} for method in (one, other))
    return mine, theirs
