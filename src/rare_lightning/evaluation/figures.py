"""Figures of a test: Dice by resolution, and a montage of predictions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from rare_lightning.evaluation.protocol import TRUTHS
from rare_lightning.evaluation.slices import Slice
from rare_lightning.files import replacing

matplotlib.rcParams["svg.hashsalt"] = "rare"  # the same figure gives the same bytes
COLORS = ["#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#d55e00", "#0072b2"]  # Okabe and Ito
SIDES = ("LR", "PA", "IS")  # where each canonical axis begins and ends
EDGE = [withStroke(linewidth=2, foreground="black")]  # of letters, on any picture


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> None:
    """Write a figure in the format of the suffix, whole or not at all."""
    suffix = path.suffix[1:]
    with replacing(path) as part:
        # Without the date, or no two SVGs would be the same.
        figure.savefig(part, dpi=dpi, format=suffix, metadata={"Date": None} if suffix == "svg" else None)


def overlay_style(classes: int) -> dict[str, Any]:
    """How imshow draws the foreground of so many classes."""
    return {"cmap": ListedColormap((COLORS * classes)[: classes - 1]), "vmin": 1, "vmax": max(classes - 1, 2)}


def plot_dice_by_resolution(summary: dict[str, Any], path: Path) -> None:
    """Mean Dice over levels, per class and truth."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    truths = [truth for truth in TRUTHS if truth in summary]
    for axes, truth in zip(figure.subplots(1, len(truths), sharey=True, squeeze=False)[0], truths, strict=True):
        levels = summary[truth]["levels"]
        places = range(len(levels))  # spacings may be alike, or far apart
        names = list(next(iter(levels.values()))["classes"])
        for name, color in zip(names, COLORS * len(names), strict=False):
            axes.plot(places, [entry["classes"][name]["dice"] for entry in levels.values()], "o-", c=color, label=name)
        axes.plot(places, [entry["mean"]["dice"] for entry in levels.values()], "k.--", label="mean")
        axes.set(title=f"{truth} truth", xlabel="scan spacing (mm)", ylim=(0, 1))
        axes.set_xticks(places, [entry["spacing_mm"] for entry in levels.values()])
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    figure.axes[0].set_ylabel(f"mean Dice of {summary['cases']} cases")
    save_figure(figure, path)


def plot_montage(cases: Sequence[tuple[str, Sequence[Slice]]], class_names: Sequence[str]) -> Figure:
    """Rows: levels. Columns: image, truth, prediction, for each titled case; empty at levels that it lacks."""
    levels = sorted({piece.level for _, slices in cases for piece in slices})
    rows, unnamed = len(levels), set(levels)
    figure = Figure(figsize=(2.1 * 3 * len(cases) + 1.2, 2.2 * rows + 0.8), layout="constrained")
    grid = figure.subplots(rows, 3 * len(cases), squeeze=False)
    for block, (title, slices) in enumerate(cases):
        of_level = {piece.level: piece for piece in slices}
        for axes_row, level in zip(grid[:, 3 * block : 3 * block + 3], levels, strict=True):
            if (piece := of_level.get(level)) is None:
                for axes in axes_row:
                    axes.set(xticks=[], yticks=[])
                    axes.spines[:].set_visible(False)
                continue
            for axes, overlay in zip(axes_row, (None, piece.truth, piece.prediction), strict=True):
                show_slice(axes, piece, overlay, len(class_names))
            if level in unnamed:
                axes_row[0].set_ylabel(f"level {level}\n{piece.spacing} mm")
                unnamed.remove(level)
            axes_row[2].set_xlabel(f"Dice {piece.dice:.3f}")
        for axes, heading in zip(grid[0, 3 * block : 3 * block + 3], (title, "truth", "prediction"), strict=True):
            axes.set_title(heading, fontsize=9)
    add_legend(figure, class_names)
    return figure


def show_slice(axes: Axes, piece: Slice, labels: np.ndarray | None, classes: int) -> None:
    """A slice's image, under the foreground of labels ``(H, W)`` if there are any."""
    axes.imshow(piece.image.T, cmap="gray", origin="lower", aspect=piece.aspect)
    if labels is not None:
        shown = np.ma.masked_equal(labels.T, 0)
        axes.imshow(shown, alpha=0.6, origin="lower", aspect=piece.aspect, **overlay_style(classes))
    axes.set(xticks=[], yticks=[])


def plot_preview(
    image: np.ndarray,
    labels: np.ndarray,
    image_affine: np.ndarray,
    label_affine: np.ndarray,
    class_names: Sequence[str],
    path: Path,
    window: tuple[float, float] | None = None,
) -> None:
    """Three planes of a scan through most foreground, with its segmentation; the file appears whole or not at all.

    The patient's left is on the left.

    Args:
        image: ``(D, H, W)`` in canonical order.
        labels: Class indices in canonical order, on a grid along the same axes.
        image_affine: ``(4, 4)``, voxel index of the image -> mm.
        label_affine: The same for the labels.
        class_names: Background first.
        path: PNG to write.
        window: Intensities that are black and white; percentiles of the image by default.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    every = max(1, round((image.size / 1e6) ** (1 / 3)))  # a million voxels tell the window as well as all
    low, high = window or np.percentile(image[::every, ::every, ::every], [1, 99.5])
    found = labels > 0
    image_spacing, label_spacing = (np.linalg.norm(affine[:3, :3], axis=0) for affine in (image_affine, label_affine))
    corner = np.linalg.inv(image_affine) @ label_affine @ (-0.5, -0.5, -0.5, 1)  # of the labels, in the image's voxels
    begin = (corner[:3] + 0.5) * image_spacing
    for axes, normal in zip(figure.subplots(1, 3), (2, 1, 0), strict=True):
        foreground = found.sum(tuple(axis for axis in range(3) if axis != normal))
        index = int(foreground.argmax()) if foreground.any() else labels.shape[normal] // 2
        where = (begin[normal] + (index + 0.5) * label_spacing[normal]) / image_spacing[normal]
        plane = np.moveaxis(image, normal, 0)[int(np.clip(where, 0, image.shape[normal] - 1))]
        overlay = np.ma.masked_equal(np.moveaxis(labels, normal, 0)[index], 0)
        for shown, first, spacing, style in (
            (plane, np.zeros(3), image_spacing, {"cmap": "gray", "vmin": low, "vmax": max(high, low + 1e-6)}),
            (overlay, begin, label_spacing, overlay_style(len(class_names)) | {"alpha": 0.5}),
        ):
            left, bottom = np.delete(first, normal)
            right, top = (left, bottom) + np.delete(spacing, normal) * shown.shape
            extent = (left, right, bottom, top)
            axes.imshow(shown.T, origin="lower", extent=extent, aspect="equal", interpolation="nearest", **style)
        width, height = np.delete(image_spacing, normal) * plane.shape
        title = ("sagittal", "coronal", "axial")[normal]
        axes.set(xlim=(0, width), ylim=(0, height), xticks=[], yticks=[], title=title)
        across, up = (ends for axis, ends in enumerate(SIDES) if axis != normal)
        for letter, x, y in zip((*across, *up), (0.03, 0.97, 0.5, 0.5), (0.5, 0.5, 0.03, 0.97), strict=True):
            axes.text(
                x, y, letter, transform=axes.transAxes, ha="center", va="center", color="white", path_effects=EDGE
            )
    add_legend(figure, class_names)
    save_figure(figure, path, dpi=110)


def add_legend(figure: Figure, class_names: Sequence[str]) -> None:
    """Colours of the foreground classes, below the pictures."""
    handles = [
        matplotlib.patches.Patch(color=color, label=name)
        for color, name in zip(COLORS * len(class_names), class_names[1:], strict=False)
    ]
    characters = max(map(len, class_names[1:])) + 6  # with a patch and a gap; eleven make an inch
    columns = min(len(handles), max(1, int(11 * figure.get_figwidth() / characters)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
