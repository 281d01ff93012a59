"""Dice of models alone and of all of them together, on their test cases brought to the spacing of each level.

python benchmarks/ensemble.py --checkpoints runs/seed-0/checkpoints/last.ckpt runs/seed-1/checkpoints/last.ckpt
    --root Task04_Hippocampus [--output docs/results/ensemble.json]

All must have been trained with one split. Scans are made and segmented as in `benchmarks/spacings.py`.
"""

import numpy as np

import rare_lightning
from common import arguments, save, tested_scans
from rare_lightning.configuration import read_checkpoint
from rare_lightning.evaluation.tables import markdown_table
from spacings import mean_dice


def main() -> None:
    """Segment, score, print and save."""
    args = arguments(__doc__, checkpoints=[""], root="")
    splits = [read_checkpoint(checkpoint)["DecathlonDataModule"]["split"] for checkpoint in args.checkpoints]
    if any(split["test"] != splits[0]["test"] for split in splits):
        raise SystemExit("the checkpoints were trained with several splits, whose test cases differ")
    pairs = tested_scans(args.checkpoints[0], args.root)
    groups = [[checkpoint] for checkpoint in args.checkpoints]
    if len(groups) > 1:
        groups.append(args.checkpoints)
    rows = []
    for members in groups:
        segmenter = rare_lightning.load(members)
        scores = {
            f"level {level}": mean_dice(
                segmenter, pairs, tuple(np.multiply(segmenter.preprocessing.spacing, stride)), level
            )
            for level, stride in segmenter.level_strides.items()
        }
        scores["mean"] = float(np.mean(list(scores.values())))
        name = "all together" if len(members) > 1 else members[0]
        rows.append({"model": name} | {level: f"{score:.4f}" for level, score in scores.items()})
        print(rows[-1], flush=True)
    save(args, "Ensemble", f"{len(pairs)} test cases, Dice on the full-resolution label", rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
