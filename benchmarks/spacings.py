"""Dice of a model on its test cases brought to other spacings, in-between and anisotropic ones, by routing rule.

python benchmarks/spacings.py --checkpoint runs/hippocampus/checkpoints/best.ckpt --root Task04_Hippocampus
    [--output docs/results/spacings.json]

Each scan is brought to the spacing by averaging what its voxels cover, segmented as `rare predict` would, and its
answer on the base grid is compared with the full-resolution label. Writes a figure beside the record.
"""

from math import ceil
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import rare_lightning
from common import arguments, save
from rare_lightning.data.resampling import resample
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table, mean_defined
from rare_lightning.inference.geometry import Geometry
from rare_lightning.inference.scans import Scan, ScanFiles, read_scan

ISOTROPIC = [1, 1.15, 1.3, 1.5, 1.7, 2, 2.35, 2.7, 3, 3.4, 4, 4.6, 5.4, 6, 6.8, 8]
ANISOTROPIC = [(1, 1, 2), (1, 1, 4), (1, 1, 8), (2, 2, 8)]
STRATEGIES = ("mean", "finest")


def simulate(scan: Scan, spacing: tuple[float, ...]) -> Scan:
    """The scan as if it had been taken at another spacing in mm along the canonical axes, in canonical order."""
    own, size = scan.geometry.canonical_spacing, scan.geometry.canonical_size
    new = [ceil(n * mm / other - 1e-3) for n, mm, other in zip(size, own, spacing, strict=True)]  # nothing is cut off
    geometry = Geometry(tuple(new), spacing, (0.0, 0.0, 0.0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))
    return Scan(resample(torch.from_numpy(scan.canonical), own, spacing, new).numpy(), geometry)


def dice(prediction: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Mean over the foreground classes that are present in either."""
    scores = []
    for value in range(1, classes):
        one, other = prediction == value, truth == value
        scores.append(2 * (one & other).sum() / (one.sum() + other.sum()) if one.any() or other.any() else np.nan)
    return mean_defined(scores)


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, checkpoint="", root="")
    split = torch.load(args.checkpoint, weights_only=True, map_location="cpu")["DecathlonDataModule"]["split"]
    cases = [case for case in read_task(args.root).cases if case.case_id in set(split["test"])]
    pairs = []
    for case in cases:
        image, label = (read_scan(ScanFiles(case.case_id, (path,))) for path in (case.image, case.label))
        pairs.append((image, label.geometry.to_canonical(label.array[0]).astype(np.uint8)))
    segmenters = {strategy: rare_lightning.load(args.checkpoint, strategy=strategy) for strategy in STRATEGIES}
    rows = []
    for spacing in [(mm, mm, mm) for mm in map(float, ISOTROPIC)] + [tuple(map(float, s)) for s in ANISOTROPIC]:
        # The rules differ on anisotropic scans alone.
        for strategy in STRATEGIES if len(set(spacing)) > 1 else STRATEGIES[:1]:
            segmenter = segmenters[strategy]
            scores, levels = [], set()
            for image, truth in pairs:
                prepared = segmenter.prepare(simulate(image, spacing), "scan")
                levels.add(prepared.route.level)
                answer = segmenter.segment(prepared, on_base_grid=True).labels
                shown = np.zeros_like(truth)  # the simulated scan may end a fraction of a voxel earlier
                d, h, w = np.minimum(answer.shape, truth.shape)
                shown[:d, :h, :w] = answer[:d, :h, :w]
                scores.append(dice(shown, truth, len(segmenter.classes)))
            rows.append(
                {
                    "spacing (mm)": "x".join(f"{mm:g}" for mm in spacing),
                    "rule": strategy if len(set(spacing)) > 1 else "either",
                    "level": "/".join(map(str, sorted(levels))),
                    "Dice": f"{mean_defined(scores):.3f}",
                }
            )
            print(rows[-1], flush=True)
    save(args, "Spacings between the levels", f"{len(cases)} test cases, Dice on the full-resolution label", rows)
    if args.output is not None:
        plot(rows, args.output.with_suffix(".png"))
    print(markdown_table(rows))


def plot(rows: list[dict[str, str]], path: Path) -> None:
    """Dice of the isotropic spacings, and the lines that join the levels."""
    curve = [(float(row["spacing (mm)"].split("x")[0]), float(row["Dice"])) for row in rows if row["rule"] == "either"]
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*curve, strict=True), "o-", label="predicted")
    axes.plot(*zip(*[point for point in curve if point[0] in (1, 2, 4, 8)], strict=True), "k--", label="levels joined")
    axes.set(xscale="log", xticks=[1, 2, 4, 8], xticklabels=["1", "2", "4", "8"], xlabel="scan spacing (mm)")
    axes.set_ylabel("mean Dice, full-resolution label")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
