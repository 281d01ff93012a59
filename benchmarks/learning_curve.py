"""How many labelled cases a task needs: the same recipe, for about as many steps, with a part of the training cases.

python benchmarks/learning_curve.py --root Task04_Hippocampus [--config configs/hippocampus.yaml] [--shares 8 4 2 1]
    [--seeds 0] [--folds 10] [--runs RUNS] [--output docs/results/learning-curve.json] [-- MORE WORDS FOR rare fit]

Shares are one in so many of the training cases, of which the smaller hold none that the larger do not. All are tested
on the same cases, and validated on the same others. For recipes that take one patch of each case an epoch.
"""

from pathlib import Path

import numpy as np

from common import arguments, line_of_run, save, train_and_test, training_record, write_splits
from rare_lightning.data.splits import make_split
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table


def main() -> None:
    """Train, test, print and save."""
    options = {"root": "", "config": "configs/hippocampus.yaml", "runs": "runs/learning-curve"}
    args = arguments(__doc__, **options, shares=[8, 4, 2, 1], seeds=[0], folds=10, words=[])
    runs = Path(args.runs)
    ids = [case.case_id for case in read_task(args.root).cases]
    split = make_split(ids, seed=0, fold=0, folds=args.folds, test_fraction=0.2)
    order = np.random.default_rng(0).permutation(split.train).tolist()
    parts = [sorted(order[: max(1, len(order) // share)]) for share in args.shares]
    write_splits([{**split.as_dict(), "train": cases} for cases in parts], runs / "splits.json")
    rows = []
    for seed in args.seeds:
        for fold, cases in enumerate(parts):
            run = runs / f"{len(cases)}-{seed}"
            fit = ["--config", args.config, "--data.root", args.root, "--data.splits_file", str(runs / "splits.json")]
            # About as many patches an epoch, and so the same schedule.
            fit += ["--data.fold", str(fold), "--data.patches_per_case", str(round(len(order) / len(cases)))]
            train_and_test(run, [*fit, "--seed_everything", str(seed), *args.words])
            rows.append({"training cases": str(len(cases)), "seed": str(seed), **line_of_run(run)})
    note = (
        f"Dice against the `fine` truth on {len(split.test)} test cases, 95 % intervals over cases; trained at commit "
        f"{training_record(run / 'checkpoints' / 'last.ckpt')['commit']}"
    )
    save(args, "Learning curve", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
