"""A comparison -> comparison.md, .html, .csv and .json, and its figures."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rare_lightning.errors import UserError
from rare_lightning.evaluation.comparison import MEAN, Comparison, Mean
from rare_lightning.evaluation.comparison_figures import plot_cases, plot_dice_against_resolution, plot_methods
from rare_lightning.evaluation.comparison_page import Cost, comparison_page
from rare_lightning.evaluation.document import picture, to_html
from rare_lightning.evaluation.slices import Slice, read_slices
from rare_lightning.evaluation.tables import write_summary
from rare_lightning.files import write_csv, write_text
from rare_lightning.provenance import describe_process


def write_comparison(comparison: Comparison, costs: Mapping[str, Cost], timed: str, folder: Path) -> None:
    """Write every file of the report, each whole or not at all.

    Args:
        comparison: What to report.
        costs: By method, of those whose network is known.
        timed: On what the costs were measured, or why not.
        folder: Where to; it exists.
    """
    plot_dice_against_resolution(comparison, folder)
    plot_cases(comparison, folder)
    montage = _write_montage(comparison, comparison.median_case(), folder)
    page = comparison_page(comparison, montage, costs, timed)
    _write_csv(comparison, folder / "comparison.csv")
    write_summary(_record(comparison, costs, timed), folder / "comparison.json")
    write_text(page, folder / "comparison.md")
    write_text(to_html(page, folder), folder / "comparison.html")


def _write_montage(comparison: Comparison, case: str, folder: Path) -> list[str]:
    """Draw the methods that kept slices of the case; says which did not."""
    slices: dict[str, list[Slice]] = {}
    names: list[str] = []
    left_out = []
    for method in comparison.methods:
        try:
            pieces, class_names = read_slices(method.slices, case)
            pieces = [piece for piece in pieces if str(piece.level) in comparison.levels]
        except UserError:
            left_out.append(method.name)
            continue
        first = next(iter(slices.values()), pieces)
        same = all(np.array_equal(one.truth, other.truth) for one, other in zip(first, pieces, strict=False))
        if same and len(first) == len(pieces) and class_names == (names or class_names):
            slices[method.name], names = pieces, class_names
        else:
            left_out.append(method.name)
    blocks = []
    for suffix in (".png", ".svg"):  # of an earlier comparison
        (folder / f"montage{suffix}").unlink(missing_ok=True)
    if slices:
        title = f"{case}, the median case of {comparison.names[0]}"
        plot_methods(slices, names, title, folder)
        blocks.append(picture("montage.png", f"{title} by fine Dice, with the fine Dice of each answer."))
    if left_out:
        blocks.append(f"Without slices of this case, and so without a picture: {', '.join(left_out)}.")
    return blocks


def _write_csv(comparison: Comparison, path: Path) -> None:
    """One line per mean."""
    lines = [["score", "method", "truth", "level", "spacing_mm", "class", *Mean._fields]]
    for (score, method, truth, level, class_name), mean in comparison.means.items():
        numbers = ["" if math.isnan(value) else f"{value:.6f}" for value in mean[:3]]
        row = [score, method, truth, level, comparison.levels[level], class_name, *numbers, str(mean.undefined)]
        lines.append(row)
    write_csv(lines, path)


def _record(comparison: Comparison, costs: Mapping[str, Cost], timed: str) -> dict[str, Any]:
    keys = ("score", "method", "truth", "level", "class")
    return {
        "reference": comparison.names[0],
        "cases": comparison.cases,
        "levels": {level: spacing for level, spacing in comparison.levels.items() if level != MEAN},
        "methods": {
            method.name: {part: method.summary.get(part) for part in ("protocol", "training", "test")}
            for method in comparison.methods
        },
        "means": [dict(zip(keys, key, strict=True)) | mean._asdict() for key, mean in comparison.means.items()],
        "differences": [
            {"method": d.method, "truth": d.truth, "level": d.level, **d.test._asdict(), "p_holm": d.p_holm}
            for d in comparison.differences
        ],
        "timed": timed,
        "costs": {name: asdict(cost) for name, cost in costs.items()},
        "process": describe_process(),
    }
