"""What a reader sees of a comparison: the page, and the table on the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from rich.markup import escape
from rich.table import Table

from rare_lightning.evaluation.comparison import MEAN, Comparison
from rare_lightning.evaluation.document import picture
from rare_lightning.evaluation.protocol import TRUTH_LABELS, Truth
from rare_lightning.evaluation.statistics import RESAMPLES
from rare_lightning.evaluation.tables import markdown_table, three_digits

AGAINST = {truth: f"`{truth}` truth, the {label}" for truth, label in TRUTH_LABELS.items()}
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cost:
    """What a method's network needs.

    Attributes:
        parameters: Numbers in it.
        milliseconds: Level -> median time of a forward; empty if not measured.
    """

    parameters: int
    milliseconds: dict[str, float]


def comparison_page(comparison: Comparison, montage: Sequence[str], costs: Mapping[str, Cost], timed: str) -> str:
    """Markdown: means, tests, pictures, costs and training of all methods.

    Args:
        comparison: What to show.
        montage: What there is to see of the median case.
        costs: By method, of those whose network is known.
        timed: On what the costs were measured, or why not.
    """
    blocks = [
        *_head(comparison),
        *_means(comparison),
        *_tests(comparison),
        "## Pictures",
        *montage,
        *_costs(comparison, costs, timed),
        *_training(comparison),
    ]
    return "\n\n".join(blocks) + "\n"


def comparison_table(comparison: Comparison, truth: Truth) -> Table:
    """Mean Dice: methods down, levels across, the best in bold."""
    table = Table(title=f"Dice, {truth} truth, {len(comparison.cases)} cases")
    table.add_column("method", overflow="fold")
    for level, spacing in comparison.levels.items():
        table.add_column(f"{level}\n{spacing}", justify="right")
    columns = [_best_in_bold(comparison, "dice", truth, level, with_interval=False) for level in comparison.levels]
    for i, name in enumerate(comparison.names):
        cells = [column[i] for column in columns]
        table.add_row(escape(name), *(f"[bold]{c.strip('*')}[/bold]" if c.startswith("*") else c for c in cells))
    return table


def _head(comparison: Comparison) -> list[str]:
    levels = [f"{level} ({spacing} mm)" for level, spacing in comparison.levels.items() if level != MEAN]
    rules: dict[str, Any] = {}
    for method in comparison.methods:
        rules |= method.summary.get("protocol", {})
    unknown = [method.name for method in comparison.methods if "protocol" not in method.summary]
    text = (
        f"{len(comparison.cases)} cases at levels {', '.join(levels)}. In brackets: 95 % bootstrap intervals over "
        f"cases ({RESAMPLES} resamples, the same for every method). In **bold**: the best mean of a row."
    )
    if "level" in comparison.truths and rules:
        text += f" Labels were brought down by `{rules.get('label_downsampling')}`."
    if rules:
        text += f" NSD forgives {rules.get('nsd_tolerance_mm')} mm."
    blocks = [f"# Comparison: {', '.join(comparison.names)}", text]
    if comparison.left_out:
        blocks.append(comparison.left_out)
    if unknown:
        blocks.append(
            f"No `summary.json` beside the `cases.csv` of {', '.join(unknown)} names a protocol: that labels were "
            "brought down alike and NSD forgives the same distance could not be checked."
        )
    return blocks + [f"**{line}**" for line in flattered(comparison)]


def flattered(comparison: Comparison) -> list[str]:
    """A line for each method whose beginning knew some of the cases."""
    return [
        f"{method.name} began from `{method.summary['training']['init_from']['weights']}`, which was trained or "
        f"validated on {len(seen)} of these cases: its scores flatter."
        for method in comparison.methods
        if (seen := method.summary.get("cases_seen_before"))
    ]


def _means(comparison: Comparison) -> list[str]:
    figure = picture("dice_by_resolution.svg", "Mean Dice against resolution, with 95 % bootstrap intervals.")
    blocks = ["## Dice", figure]
    for truth in comparison.truths:
        rows = product(comparison.levels, comparison.classes)
        blocks.append(f"### Against the {AGAINST[truth]}")
        blocks.append(markdown_table([_row(comparison, "dice", truth, level, name) for level, name in rows]))
    for score, heading in (("hd95_mm", "HD95 (mm)"), ("nsd", "NSD")):
        blocks.append(f"## {heading}")
        for truth in comparison.truths:
            rows = product(comparison.levels, comparison.classes[-1:])
            blocks.append(f"Mean over classes, against the {AGAINST[truth]}:")
            blocks.append(markdown_table([_row(comparison, score, truth, level, name) for level, name in rows]))
        if score == "hd95_mm":
            blocks.append(
                "HD95 is undefined where truth or prediction is empty. How often is in parentheses: a mean hides "
                "empty predictions, so only methods with the fewest of them can be in bold."
            )
    return blocks


def _row(comparison: Comparison, score: str, truth: Truth, level: str, class_name: str) -> dict[str, str]:
    cells = _best_in_bold(comparison, score, truth, level, class_name)
    row = {"level": level, "spacing (mm)": comparison.levels[level], "class": class_name}
    return row | dict(zip(comparison.names, cells, strict=True))


def _best_in_bold(
    comparison: Comparison,
    score: str,
    truth: Truth,
    level: str,
    class_name: str | None = None,
    with_interval: bool = True,
) -> list[str]:
    """A cell per method; alike to the last digit shown is equally good, and nothing is best where all are alike."""
    digits = 2 if score == "hd95_mm" else 3
    where = truth, level, class_name or comparison.classes[-1]
    entries = [comparison.means[score, name, *where] for name in comparison.names]
    shown = [round(entry.mean, digits) for entry in entries]
    # An empty prediction has no HD95: no method is the best for having more of them.
    most = min(entry.undefined for entry in entries) if score == "hd95_mm" else math.inf
    able = [
        mean for mean, entry in zip(shown, entries, strict=True) if not math.isnan(mean) and entry.undefined <= most
    ]
    best = (min if score == "hd95_mm" else max)(able, default=math.nan) if len(set(shown)) > 1 else math.nan
    cells = []
    for entry, mean in zip(entries, shown, strict=True):
        cell = _number(entry.mean, digits)
        cell = f"**{cell}**" if mean == best and entry.undefined <= most else cell
        if with_interval and not math.isnan(mean):
            cell += f" [{_number(entry.low, digits)}, {_number(entry.high, digits)}]"
        if with_interval and entry.undefined:
            cell += f" ({entry.undefined} undefined)"
        cells.append(cell)
    return cells


def _tests(comparison: Comparison) -> list[str]:
    reference = comparison.names[0]
    family = sum(not math.isnan(difference.p_holm) for difference in comparison.differences)
    text = (
        f"Per-case Dice (mean over classes) of each method less that of {reference}, the reference: median of the "
        "differences with its 95 % bootstrap interval, matched-pairs rank-biserial correlation (1: the method is "
        "better in every case, -1: in none), and two-sided Wilcoxon signed-rank tests, Holm-adjusted for the "
        f"{family} tests of this table. In **bold**: adjusted p < {SIGNIFICANT}."
    )
    several = len(comparison.truths) > 1
    if several:
        text += " At level 0 both truths are one."
    smallest = family * 2.0 ** (1 - len(comparison.cases))
    if smallest >= SIGNIFICANT:
        text += (
            f" With {len(comparison.cases)} cases no adjusted p can be below {min(1.0, smallest):.2g}, whatever the "
            "difference: these tests cannot tell."
        )
    rows = []
    for method, truth, level, test, p_holm in comparison.differences:
        adjusted = _p(p_holm)
        rows.append(
            {
                "method": method,
                "truth": "both" if level == "0" and several else truth,
                "level": level,
                "cases": str(test.cases),
                "median difference": f"{_signed(test.median)} [{_signed(test.low)}, {_signed(test.high)}]",
                "rank-biserial": _signed(test.rank_biserial, 2),
                "p": _p(test.p),
                "p (Holm)": f"**{adjusted}**" if p_holm < SIGNIFICANT else adjusted,
            }
        )
    caption = f"Dice of every case, mean over classes; above the diagonal a method is better than {reference}."
    return ["## Paired tests", text, markdown_table(rows), picture("cases.svg", caption)]


def _costs(comparison: Comparison, costs: Mapping[str, Cost], timed: str) -> list[str]:
    reference = costs[comparison.names[0]].milliseconds if comparison.names[0] in costs else {}
    rows = []
    for name in comparison.names:
        cost = costs.get(name)
        row = {"method": name, "parameters": f"{cost.parameters:,}" if cost else "-"}
        for level in comparison.levels:
            if level != MEAN:
                ms = cost.milliseconds.get(level) if cost else None
                ratio = f" (x{ms / reference[level]:.2f})" if ms and level in reference else ""
                row[f"level {level}"] = f"{three_digits(ms)} ms{ratio}" if ms else "-"
        rows.append(row)
    return ["## Parameters and inference time", timed, *([markdown_table(rows)] if costs else [])]


def _training(comparison: Comparison) -> list[str]:
    rows = []
    for method in comparison.methods:
        record = method.summary.get("training") or {}
        row = {"method": method.name, "epochs": record.get("epochs")}
        for name in ("minutes", "cpu_minutes"):
            row[name.replace("_", " ")] = f"{record[name]:.1f}" if name in record else None
        row |= {name: record.get(name) for name in ("seed", "commit", "hardware")}
        rows.append({key: "-" if value is None else str(value) for key, value in row.items()})
    known = any(method.summary.get("training") for method in comparison.methods)
    return ["## Training", markdown_table(rows)] if known else []


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2g}"
