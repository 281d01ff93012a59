"""How many labelled cases a task needs: the same recipe, for about as many steps, with a part of the training cases.

python benchmarks/learning_curve.py --root Task04_Hippocampus [--config configs/hippocampus.yaml] [--shares 8 4 2 1]
    [--seeds 0] [--folds 10] [--runs RUNS] [--output docs/results/learning-curve.json] [-- MORE WORDS FOR rare fit]

Shares are one in so many of the training cases, of which the smaller hold none that the larger do not. All are tested
on the same cases, and validated on the same others. For recipes that take one patch of each case an epoch.
"""

from pathlib import Path

from common import arguments, save, shuffled_split, train_and_test_each, write_splits
from rare_lightning.evaluation.tables import markdown_table


def main() -> None:
    """Train, test, print and save."""
    options = {"root": "", "config": "configs/hippocampus.yaml", "runs": "runs/learning-curve"}
    args = arguments(__doc__, **options, shares=[8, 4, 2, 1], seeds=[0], folds=10, words=[])
    runs = Path(args.runs)
    split, order = shuffled_split(args.root, args.folds)
    parts = [sorted(order[: max(1, len(order) // share)]) for share in args.shares]
    splits = runs / "splits.json"
    write_splits([{**split.as_dict(), "train": cases} for cases in parts], splits)
    trainings = {}
    for fold, cases in enumerate(parts):
        words = ["--config", args.config, "--data.root", args.root, "--data.splits_file", str(splits)]
        # About as many patches an epoch, and so the same schedule.
        words += ["--data.fold", str(fold), "--data.patches_per_case", str(round(len(order) / len(cases)))]
        trainings[str(len(cases))] = runs / str(len(cases)), words
    rows, commit = train_and_test_each("training cases", trainings, args.seeds, args.words)
    note = (
        f"Dice against the `fine` truth on {len(split.test)} test cases, 95 % intervals over cases; trained at commit "
        f"{commit}"
    )
    save(args, "Learning curve", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
