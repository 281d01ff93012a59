"""Timings of inference -> benchmark.csv, .md, .json and a figure of time against resolution."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from rare_lightning.evaluation.figures import save_figure
from rare_lightning.evaluation.tables import markdown_table, three_digits
from rare_lightning.files import write_csv, write_json, write_text
from rare_lightning.provenance import describe_process

TimingRow = dict[str, Any]
"""Plain values of one engine at one level; see :func:`rare_lightning.inference.benchmark.as_rows`."""


def write_timings(rows: Sequence[TimingRow], note: str, folder: Path) -> None:
    """Write ``benchmark.csv``, ``.md``, ``.json`` (for docs/results) and ``.png``, each whole or not at all.

    Args:
        rows: All with the same keys in one order.
        note: What was timed.
        folder: Where to.
    """
    write_csv([list(rows[0]), *(list(row.values()) for row in rows)], folder / "benchmark.csv")
    shown = [{name: _rounded(value) for name, value in row.items()} for row in rows]
    record = {"title": "Inference", "note": note, "rows": shown, "process": describe_process()}
    write_json(record, folder / "benchmark.json")
    write_text(f"{note}\n\n{markdown_table(shown)}\n", folder / "benchmark.md")
    save_figure(_plot(rows, note), folder / "benchmark.png")


def _plot(rows: Sequence[TimingRow], note: str) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for engine in dict.fromkeys(row["engine"] for row in rows):
        own = sorted((row["spacing mm"], row["total ms"]) for row in rows if row["engine"] == engine)
        style = "k--" if "U-Net" in engine else "o-"
        axes.plot([mm for mm, _ in own], [ms for _, ms in own], style, label=engine)
    spacings = sorted({row["spacing mm"] for row in rows})
    axes.set(xscale="log", yscale="log", xticks=spacings, xlabel="scan spacing, mean (mm)", title=note)
    axes.set_xticklabels([f"{mm:g}" for mm in spacings])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylabel("from file to file (ms)")
    axes.title.set_fontsize(9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _rounded(value: Any) -> str:
    return three_digits(value) if isinstance(value, float) else str(value)
