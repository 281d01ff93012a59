"""Figures of a comparison, each as PNG and as SVG."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from rare_lightning.evaluation.comparison import MEAN, Comparison
from rare_lightning.evaluation.figures import COLORS, add_legend, save_figure, show_slice
from rare_lightning.evaluation.slices import Slice

LINES = [color for color in COLORS if color != "#f0e442"]  # yellow is hard to see on white
MARKERS = "osD^vPX"


def plot_dice_against_resolution(comparison: Comparison, folder: Path) -> None:
    """``dice_by_resolution``: mean Dice and its interval over levels, a line per method and a panel per truth."""
    levels = [level for level in comparison.levels if level != MEAN]
    places = np.arange(len(levels))
    truths = comparison.truths
    figure = Figure(figsize=(4.5 * len(truths), 4), layout="constrained")
    panels = figure.subplots(1, len(truths), sharey=True, squeeze=False)[0]
    for axes, truth in zip(panels, truths, strict=True):
        for i, name in enumerate(comparison.names):
            entries = [comparison.means["dice", name, truth, level, comparison.classes[-1]] for level in levels]
            mean, low, high = (np.array([entry[column] for entry in entries]) for column in range(3))
            beside = 0.06 * (i - (len(comparison.names) - 1) / 2)  # so that intervals do not hide one another
            reach = np.maximum([mean - low, high - mean], 0)
            style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)]}
            axes.errorbar(places + beside, mean, reach, label=name, ms=4.5, capsize=2.5, lw=1.3, **style)
        axes.set(title=f"{truth} truth", xlabel="scan spacing (mm)", xlim=(-0.5, len(levels) - 0.5), ylim=(0, 1))
        axes.set_xticks(places, [comparison.levels[level] for level in levels])
        axes.grid(alpha=0.3)
    panels[0].set_ylabel(f"mean Dice of {len(comparison.cases)} cases")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    _save(figure, folder, "dice_by_resolution")


def plot_cases(comparison: Comparison, folder: Path) -> None:
    """``cases``: every case's Dice of each method over the reference's, coloured by level, a row per truth."""
    reference, *others = comparison.names
    levels = [level for level in comparison.levels if level != MEAN]
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(levels)))
    truths = comparison.truths
    figure = Figure(figsize=(3.4 * len(others) + 0.6, 3.5 * len(truths)), layout="constrained")
    grid = figure.subplots(len(truths), len(others), sharex=True, sharey=True, squeeze=False)
    for (row, truth), (column, name) in product(enumerate(truths), enumerate(others)):
        axes, pair = grid[row, column], comparison.case_dice(name)[:, row]
        axes.axline((0, 0), slope=1, color="0.6", lw=1)
        for i, level in enumerate(levels):
            label = f"{comparison.levels[level]} mm"
            axes.scatter(*pair[:, i], s=14, color=colors[i], alpha=0.7, edgecolors="none", label=label)
        axes.set(title=f"{truth} truth", xlabel=f"Dice of {reference}", ylabel=f"Dice of {name}", aspect="equal")
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.grid(alpha=0.3)
    handles = grid[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(levels), 2 * len(others)), frameon=False)
    _save(figure, folder, "cases")


def plot_methods(slices: Mapping[str, Sequence[Slice]], class_names: Sequence[str], title: str, folder: Path) -> None:
    """``montage``: rows are levels; columns are image, truth, and each method's answer.

    Args:
        slices: Method -> slice of each level, all of the same image and truth.
        class_names: Background first.
        title: Above it all.
        folder: Where to.
    """
    first = next(iter(slices.values()))
    columns = 2 + len(slices)
    height, width = first[0].image.shape[1] * first[0].aspect, first[0].image.shape[0]
    tall = 2.0 * min(max(height / width, 0.5), 1.8)
    figure = Figure(figsize=(2.0 * columns + 0.4, (tall + 0.25) * len(first) + 0.8), layout="constrained")
    grid = figure.subplots(len(first), columns, squeeze=False)
    for row, piece in zip(grid, first, strict=True):
        show_slice(row[0], piece, None, len(class_names))
        show_slice(row[1], piece, piece.truth, len(class_names))
        row[0].set_ylabel(f"level {piece.level}\n{piece.spacing} mm")
    for column, pieces in zip(grid.T[2:], slices.values(), strict=True):
        for axes, piece in zip(column, pieces, strict=True):
            show_slice(axes, piece, piece.prediction, len(class_names))
            axes.set_xlabel(f"Dice {piece.dice:.3f}", fontsize=9)
    for axes, heading in zip(grid[0], ("image", "truth", *slices), strict=True):
        axes.set_title(heading, fontsize=10)
    figure.suptitle(title, fontsize=10)
    add_legend(figure, class_names)
    _save(figure, folder, "montage")


def _save(figure: Figure, folder: Path, name: str) -> None:
    for suffix in ("png", "svg"):
        save_figure(figure, folder / f"{name}.{suffix}")
