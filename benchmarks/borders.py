"""Dice of a model on its test cases with a border of zeros around them, as turning and padding a scan leave.

python benchmarks/borders.py --checkpoint runs/hippocampus/checkpoints/best.ckpt --root Task04_Hippocampus
    [--output docs/results/borders.json]

Scored against the full-resolution label, within the scan as it was.
"""

import numpy as np
import torch

import rare_lightning
from common import arguments, save
from rare_lightning.configuration import read_checkpoint
from rare_lightning.data.geometry import Geometry
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table, mean_defined
from rare_lightning.inference import Segmenter
from rare_lightning.inference.scans import Scan, ScanFiles, read_scan
from rare_lightning.metrics.scores import dice

WIDTHS = [0, 1, 2, 4, 8, 16]


def mean_dice(segmenter: Segmenter, scan: Scan, truth: torch.Tensor, width: int) -> float:
    """Over foreground classes, with so many voxels of zeros on each side."""
    array = np.pad(scan.array, [(0, 0), *3 * [(width, width)]])
    own = scan.geometry
    size_x, size_y, size_z = array.shape[1:]
    # Where it lies does not matter to the answer, which is compared voxel by voxel.
    padded = Scan(array, Geometry((size_x, size_y, size_z), own.spacing, own.origin, own.direction))
    answer = torch.from_numpy(segmenter.segment(segmenter.prepare(padded, "scan")).labels)
    inside = answer[tuple(slice(width, width + n) for n in truth.shape)]
    return mean_defined([dice(inside == value, truth == value) for value in range(1, len(segmenter.classes))])


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, checkpoint="", root="")
    test = set(read_checkpoint(args.checkpoint)["DecathlonDataModule"]["split"]["test"])
    cases = [case for case in read_task(args.root).cases if case.case_id in test]
    pairs = []
    for case in cases:
        image, label = (read_scan(ScanFiles(case.case_id, (path,))) for path in (case.image, case.label))
        pairs.append((image, torch.from_numpy(label.array[0].astype(np.uint8))))
    segmenter = rare_lightning.load(args.checkpoint)
    rows = []
    for width in WIDTHS:
        scores = [mean_dice(segmenter, image, truth, width) for image, truth in pairs]
        rows.append({"voxels": str(width), "mean": f"{mean_defined(scores):.3f}", "lowest": f"{min(scores):.3f}"})
    note = f"{len(cases)} test cases, voxels of zeros on each side, Dice on the full-resolution label"
    save(args, "Borders of zeros", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
