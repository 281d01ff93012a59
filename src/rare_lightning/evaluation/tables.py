"""Rows of scores -> cases.csv, summary.json and the table on the terminal."""

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.markup import escape
from rich.table import Table

from rare_lightning.data.geometry import format_spacing
from rare_lightning.errors import UserError
from rare_lightning.evaluation.protocol import TRUTH_LABELS, TRUTHS, Row, Truth
from rare_lightning.files import write_csv, write_json
from rare_lightning.metrics import Scores
from rare_lightning.networks.grids import is_spacing, triple
from rare_lightning.provenance import describe_process

RANGES = {"dice": (0, 1), "hd95_mm": (0, math.inf), "nsd": (0, 1), "volume_diff": (-1, math.inf)}
COLUMNS = ["case", "level", "spacing_mm", "truth", "class", *Scores._fields]


def same_spacing(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two are alike but for what programs and four digits round away."""
    return all(math.isclose(*pair, rel_tol=1e-3) for pair in zip(one, other, strict=True))


def spacing_of(rows: Iterable[Row]) -> str:
    """Spacing of one level in mm; where its cases differ the median by axis, which is marked as such."""
    spacings = [row.spacing_mm for row in rows]
    middle = [median(axis) for axis in zip(*spacings, strict=True)]
    mark = "" if all(same_spacing(spacing, middle) for spacing in spacings) else "median "
    return mark + format_spacing(middle)


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Markdown table with the first row's keys as its heading; all but the first column right-aligned.

    A bar within a cell does not begin another.
    """
    names = list(rows[0])
    lines = [names, ["---", *["---:"] * (len(names) - 1)], *[list(row.values()) for row in rows]]
    cells = [[cell.replace("|", r"\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def three_digits(value: float) -> str:
    """Three digits, without an exponent where there are more before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def write_cases(rows: Iterable[Row], path: Path) -> None:
    """Write ``cases.csv``, one line per row; undefined scores stay empty."""
    lines = [COLUMNS]
    for row in rows:
        scores = ["" if math.isnan(score) else f"{score:.6f}" for score in row.scores]
        lines.append([row.case, str(row.level), format_spacing(row.spacing_mm), row.truth, row.class_name, *scores])
    write_csv(lines, path)


def read_cases(path: Path) -> list[Row]:
    """Rows of a ``cases.csv``, the inverse of :func:`write_cases`.

    Raises:
        UserError: If there is no such file, or a line of it is none that :func:`write_cases` writes.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets save it
            lines = csv.reader(file)
            header = next(lines, [])
            if header != COLUMNS:
                raise UserError(f"{path}, line 1: the columns must be {','.join(COLUMNS)}, not {','.join(header)}")
            return [_parsed(line, f"{path}, line {lines.line_num}") for line in lines if line]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a cases.csv of rare test ({error})") from error


def summarize(rows: Sequence[Row]) -> dict[str, Any]:
    """Mean over cases, then over classes, then over levels, for each truth.

    Undefined scores are left out of a mean and counted beside it. A truth without rows is left out.
    """
    summary: dict[str, Any] = {"cases": len({row.case for row in rows})}
    for truth in sorted({row.truth for row in rows}, key=TRUTHS.index):
        grouped: dict[int, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
        for row in rows:
            if row.truth == truth:
                grouped[row.level][row.class_name].append(row)
        levels: dict[str, Any] = {}
        for level, classes in sorted(grouped.items()):
            by_class = {name: _mean_over_cases(of_class) for name, of_class in classes.items()}
            mean = {score: mean_defined(entry[score] for entry in by_class.values()) for score in Scores._fields}
            spacing = spacing_of(chain.from_iterable(classes.values()))
            cases = len(next(iter(classes.values())))
            levels[str(level)] = {"spacing_mm": spacing, "cases": cases, "classes": by_class, "mean": mean}
        overall = {score: mean_defined(entry["mean"][score] for entry in levels.values()) for score in Scores._fields}
        summary[truth] = {"levels": levels, "mean": overall}
    return summary


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write ``summary.json``; undefined scores become null."""
    write_json(_without_nan(summary), path)


def write_scores(
    rows: Sequence[Row],
    folder: Path,
    protocol: dict[str, Any],
    training: dict[str, Any] | None,
    median_size: list[int] | None = None,
    without_prediction: int | None = None,
) -> dict[str, Any]:
    """Write ``cases.csv`` and ``summary.json``, what every scored method leaves; returns the summary.

    Args:
        rows: All scores.
        folder: Made if it does not exist.
        protocol: What was scored how: ``label_downsampling`` and ``nsd_tolerance_mm``.
        training: How the method was trained, if that is known.
        median_size: Of the scans in voxels of level 0, where there are scans.
        without_prediction: Number of labels that were not scored since nothing was predicted, where that can be.
    """
    seen = {row.case for row in rows}.intersection((training or {}).get("init_from", {}).get("cases", ()))
    summary = {
        "protocol": protocol,
        **({"median_size": median_size} if median_size is not None else {}),
        **summarize(rows),
        **({"labels_without_prediction": without_prediction} if without_prediction is not None else {}),
        **({"cases_seen_before": sorted(seen)} if seen else {}),
        "test": describe_process(),
        "training": training,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_cases(rows, folder / "cases.csv")
    write_summary(summary, folder / "summary.json")
    return summary


def terminal_table(summary: dict[str, Any], truth: Truth) -> Table:
    """Classes and scores down, of which there may be many, and levels across."""
    table = Table(title=f"{truth} truth ({TRUTH_LABELS[truth]}), {summary['cases']} cases")
    levels = summary[truth]["levels"]
    table.add_column("level\nspacing (mm)", overflow="fold")
    for level, entry in levels.items():
        table.add_column(f"{level}\n{entry['spacing_mm']}", justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    for name in next(iter(levels.values()))["classes"]:
        table.add_row(f"Dice {escape(name)}", *(f"{entry['classes'][name]['dice']:.3f}" for entry in levels.values()))
    if any(entry["cases"] < summary["cases"] for entry in levels.values()):
        table.add_row("cases", *(str(entry["cases"]) for entry in levels.values()))
    table.add_section()
    columns = [_formatted(scores) for scores in (*(entry["mean"] for entry in levels.values()), summary[truth]["mean"])]
    for heading, *cells in zip(("Dice", "HD95 (mm)", "NSD", "volume diff."), *columns, strict=True):
        table.add_row(heading, *cells)
    return table


def describe_summary(summary: dict[str, Any]) -> str:
    """One line under a table: what was measured, and how the network came about."""
    test, training = summary["test"], summary["training"] or {}
    words = [f"{summary['cases']} cases"]
    if seen := summary.get("cases_seen_before"):
        words.append(f"{len(seen)} of them known to {training['init_from']['weights']}, from which the training began")
    words += [f"NSD tolerance {summary['protocol']['nsd_tolerance_mm']:g} mm"]
    if "minutes" in training:
        words.append(f"trained for {training['epochs']} epochs, {training['minutes']:.1f} min")
    if "step_seconds" in training:
        words.append(f"{training['step_seconds']:.2f} s a step")
    if training.get("peak_memory_gib"):
        words.append(f"peak memory {training['peak_memory_gib']:.1f} GiB")
    words += [f"seed {training.get('seed')}", f"commit {training.get('commit') or 'unknown'}"]
    return ", ".join([*words, training.get("hardware", test["hardware"])])


def mean_defined(values: Iterable[float]) -> float:
    """Mean of the numbers that are not NaN; NaN if there are none."""
    defined = [value for value in values if not math.isnan(value)]
    return fmean(defined) if defined else math.nan


def _parsed(line: list[str], where: str) -> Row:
    if len(line) != len(COLUMNS):
        raise UserError(f"{where}: has {len(line)} columns, and must have {len(COLUMNS)}")
    case, level, spacing, truth, class_name, *scores = line
    if truth not in TRUTHS:
        raise UserError(f"{where}: truth must be {' or '.join(TRUTHS)}, not {truth!r}")
    try:
        numbers = Scores(*(float(score) if score else math.nan for score in scores))
        row = Row(case, int(level), triple(map(float, spacing.split("x"))), truth, class_name, numbers)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error
    if row.level < 0 or not is_spacing(row.spacing_mm):
        raise UserError(f"{where}: level {level} of {spacing} mm; a level is 0 or more, and a spacing above 0")
    for name, number in numbers._asdict().items():
        low, high = RANGES[name]
        if not (math.isnan(number) or (low <= number <= high and math.isfinite(number))):
            raise UserError(f"{where}: {name} is {number:g}; it lies in {low:g}..{high:g}, or is empty where undefined")
    return row


def _mean_over_cases(rows: Sequence[Row]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for index, score in enumerate(Scores._fields):
        values = [row.scores[index] for row in rows]
        entry[score] = mean_defined(values)
        entry[f"{score}_undefined"] = sum(map(math.isnan, values))
    return entry


def _formatted(scores: dict[str, float]) -> list[str]:
    return [
        f"{scores['dice']:.3f}",
        f"{scores['hd95_mm']:.2f}",
        f"{scores['nsd']:.3f}",
        "nan" if math.isnan(scores["volume_diff"]) else f"{scores['volume_diff']:+.3f}",
    ]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
