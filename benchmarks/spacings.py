"""Dice of a model on its test cases brought to other spacings, in-between and anisotropic ones, by entry level.

python benchmarks/spacings.py --checkpoint runs/hippocampus/checkpoints/best.ckpt --root Task04_Hippocampus
    [--output docs/results/spacings.json]

Each scan is brought to the spacing by averaging what its voxels cover, segmented as `rare predict` would from each
level that may make sense, and its answer on the base grid is compared with the full-resolution label. Beside that, the
level that each routing rule takes, and how far `rare predict` lies above the line that joins the levels' own spacings.
Writes a figure beside the record.
"""

from math import ceil, log2
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from matplotlib.figure import Figure

import rare_lightning
from common import arguments, mean_dice_of, save, tested_scans
from rare_lightning.configuration import read_checkpoint
from rare_lightning.data.geometry import Geometry, Spacing
from rare_lightning.data.resampling import resample
from rare_lightning.data.routing import RoutingStrategy, route
from rare_lightning.data.scans import Scan
from rare_lightning.evaluation.tables import markdown_table, mean_defined
from rare_lightning.inference import Segmenter

ISOTROPIC: list[float] = [1, 1.15, 1.3, 1.5, 1.7, 2, 2.35, 2.7, 3, 3.4, 4, 4.6, 5.4, 6, 6.8, 8]
ANISOTROPIC: list[Spacing] = [(1, 1, 2), (1, 1, 3), (1, 1, 4), (1, 1, 6), (1, 1, 8), (2, 2, 4), (2, 2, 8)]
SPACINGS: list[Spacing] = [(mm, mm, mm) for mm in ISOTROPIC] + ANISOTROPIC


def simulate(scan: Scan, spacing: tuple[float, ...]) -> Scan:
    """The scan as if it had been taken at another spacing in mm along the canonical axes, in canonical order."""
    own, size = scan.geometry.canonical_spacing, scan.geometry.canonical_size
    new = [ceil(n * mm / other - 1e-3) for n, mm, other in zip(size, own, spacing, strict=True)]  # nothing is cut off
    geometry = Geometry(tuple(new), spacing, (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return Scan(resample(torch.from_numpy(scan.canonical), own, spacing, new).numpy(), geometry)


def mean_dice(segmenter: Segmenter, pairs: list[tuple[Scan, Scan]], spacing: tuple[float, ...], level: int) -> float:
    """Of all cases and foreground classes at a spacing, entering at a level."""
    scores = []
    for image, label in pairs:
        truth = label.canonical[0]
        prepared = segmenter.prepare(simulate(image, spacing), "scan", level)
        answer = segmenter.segment(prepared, on_base_grid=True).labels
        shown = np.zeros(truth.shape, np.uint8)  # the simulated scan may end a fraction of a voxel earlier
        d, h, w = np.minimum(answer.shape, truth.shape)
        shown[:d, :h, :w] = answer[:d, :h, :w]
        scores.append(mean_dice_of(shown, truth, len(segmenter.classes)))
    return mean_defined(scores)


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, checkpoint="", root="")
    trained_on = read_checkpoint(args.checkpoint)["datamodule_hyper_parameters"]["random_spacing"]
    pairs = tested_scans(args.checkpoint, args.root)
    segmenter = rare_lightning.load(args.checkpoint)
    base, strides = segmenter.preprocessing.spacing, segmenter.level_strides
    scores: dict[Spacing, dict[int, float]] = {}
    for spacing in SPACINGS:
        near = {
            level: [abs(log2(mm / (b * s))) for mm, b, s in zip(spacing, base, stride, strict=True)]
            for level, stride in strides.items()
        }
        isotropic = len(set(spacing)) == 1
        levels = [level for level in strides if max(near[level]) < 0.99 or not isotropic]
        scores[spacing] = {level: mean_dice(segmenter, pairs, spacing, level) for level in levels}
        print(spacing, scores[spacing], flush=True)
    rows = []
    for spacing, by_level in scores.items():
        chosen = {rule: route(spacing, base, strides, rule).level for rule in get_args(RoutingStrategy)}
        row = {"spacing (mm)": "x".join(f"{mm:g}" for mm in spacing)}
        row |= {f"entry at {level}": f"{by_level[level]:.3f}" if level in by_level else "-" for level in strides}
        row |= {f"level by {rule}": str(level) for rule, level in chosen.items()}
        row["above the line"] = (
            f"{by_level[chosen['detail']] - line(spacing[0], scores):+.3f}" if len(set(spacing)) == 1 else "-"
        )
        rows.append(row)
    shares = ", ".join(f"random_spacing.{name} {share:g}" for name, share in trained_on.items())
    note = f"{len(pairs)} test cases, Dice on the full-resolution label"
    save(args, f"Spacings between the levels, {shares}", note, rows)
    if args.output is not None:
        plot(rows, args.output.with_suffix(".png"))
    print(markdown_table(rows))


def line(mm: float, scores: dict[Spacing, dict[int, float]]) -> float:
    """Dice on the line that joins the levels' own spacings, on a logarithmic scale."""
    own = {spacing[0]: next(iter(by_level.values())) for spacing, by_level in scores.items() if len(by_level) == 1}
    return float(np.interp(log2(mm), np.log2(list(own)), list(own.values())))


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Dice of the isotropic spacings by entry level, the levels that are taken, and the line that joins the levels."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    taken = []
    for name in [name for name in rows[0] if name.startswith("entry at ")]:
        level = name.removeprefix("entry at ")
        own = [
            (float(row["spacing (mm)"].split("x")[0]), float(row[name]), row["level by detail"] == level)
            for row in rows
            if row["above the line"] != "-" and row[name] != "-"
        ]
        axes.plot([mm for mm, _, _ in own], [score for _, score, _ in own], "o-", markersize=3, label=name)
        taken += [(mm, score) for mm, score, is_taken in own if is_taken]
    axes.plot(*zip(*sorted(taken), strict=True), "ko", markersize=8, fillstyle="none", label="taken by rare predict")
    own = sorted(point for point in taken if point[0] in (1, 2, 4, 8))
    axes.plot(*zip(*own, strict=True), "k--", linewidth=1, label="levels joined")
    axes.set(xscale="log", xticks=[1, 2, 4, 8], xticklabels=["1", "2", "4", "8"], xlabel="scan spacing (mm)")
    axes.set_ylabel("mean Dice, full-resolution label")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
