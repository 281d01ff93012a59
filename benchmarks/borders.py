"""Dice of a model on its test cases with a border of zeros around them, as turning and padding a scan leave.

python benchmarks/borders.py --checkpoint runs/hippocampus/checkpoints/best.ckpt --root Task04_Hippocampus
    [--output docs/results/borders.json]

Scored against the full-resolution label, within the scan as it was.
"""

import numpy as np

import rare_lightning
from common import arguments, mean_dice_of, save, tested_scans
from rare_lightning.data.geometry import Geometry
from rare_lightning.evaluation.tables import markdown_table, mean_defined
from rare_lightning.inference import Segmenter
from rare_lightning.inference.scans import Scan

WIDTHS = [0, 1, 2, 4, 8, 16]


def mean_dice(segmenter: Segmenter, scan: Scan, label: Scan, width: int) -> float:
    """Over foreground classes, with so many voxels of zeros on each side."""
    array = np.pad(scan.array, [(0, 0), *3 * [(width, width)]])
    own = scan.geometry
    size_x, size_y, size_z = array.shape[1:]
    # Where it lies does not matter to the answer, which is compared voxel by voxel.
    padded = Scan(array, Geometry((size_x, size_y, size_z), own.spacing, own.origin, own.direction))
    answer = segmenter.segment(segmenter.prepare(padded, "scan")).labels
    inside = tuple(slice(width, width + n) for n in label.array.shape[1:])
    return mean_dice_of(answer[inside], label.array[0], len(segmenter.classes))


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, checkpoint="", root="")
    pairs = tested_scans(args.checkpoint, args.root)
    segmenter = rare_lightning.load(args.checkpoint)
    rows = []
    for width in WIDTHS:
        scores = [mean_dice(segmenter, *pair, width) for pair in pairs]
        rows.append({"voxels": str(width), "mean": f"{mean_defined(scores):.3f}", "lowest": f"{min(scores):.3f}"})
    note = f"{len(pairs)} test cases, voxels of zeros on each side, Dice on the full-resolution label"
    save(args, "Borders of zeros", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
