"""Cross-validation: every case is tested once, by a network that never saw it.

python benchmarks/cross_validation.py --root Task04_Hippocampus [--folds 5] [--only 0 2 4] [--runs RUNS]
    [--config configs/hippocampus.yaml] [--output docs/results/cross-validation.json] [-- words for every rare fit ...]

Nothing is chosen on the cases of a fold: the last weights are tested. What is trained or tested already is not done
again, and what was interrupted goes on. With ``--only`` several processes share the folds; the one that finds all of
them tested writes the table, with 95 % intervals over cases, and ``RUNS/cases.csv``, of which ``rare compare`` takes
those of several methods.
"""

from collections.abc import Sequence
from pathlib import Path

from common import arguments, dice_with_intervals, save, train_and_test, training_record, write_splits
from rare_lightning.data.splits import make_split
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table, read_cases, write_cases


def folds_of(root: str, folds: int) -> list[dict[str, Sequence[str]]]:
    """Splits that test a part of the cases each.

    One training case is called validation, because a split must have some.
    """
    cases = [case.case_id for case in read_task(Path(root)).cases]
    splits = [make_split(cases, seed=0, fold=fold, folds=folds, test_fraction=0) for fold in range(folds)]
    return [{"train": split.train[1:], "val": split.train[:1], "test": split.val} for split in splits]


def main() -> None:
    """Train, test, print and save."""
    options = {"root": "", "config": "configs/hippocampus.yaml", "runs": "runs/cross-validation"}
    args = arguments(__doc__, **options, folds=5, only=[-1], words=[])
    splits = Path(args.runs, "splits.json")
    write_splits(folds_of(args.root, args.folds), splits)
    runs = [Path(args.runs, f"fold-{fold}") for fold in range(args.folds)]
    tests = [run / "test" / "cases.csv" for run in runs]
    for fold in range(args.folds) if args.only == [-1] else args.only:
        words = ["--config", args.config, "--data.root", args.root, *args.words]
        train_and_test(runs[fold], [*words, "--data.splits_file", str(splits), "--data.fold", str(fold)])
    missing = [str(test) for test in tests if not test.exists()]
    if missing:
        print(f"Not tested yet: {', '.join(missing)}")
        return
    rows = [row for test in tests for row in read_cases(test)]
    write_cases(rows, Path(args.runs, "cases.csv"))
    table, _ = dice_with_intervals(rows)
    training = [training_record(run / "checkpoints" / "last.ckpt") for run in runs]
    minutes = ", ".join(f"{record['cpu_minutes']:.0f}" for record in training)
    note = f"{args.folds} folds, processor minutes of training {minutes}, at commit {training[0]['commit']} with "
    save(args, "Cross-validation", note + training[-1]["command"], table)
    print(markdown_table(table))


if __name__ == "__main__":
    main()
