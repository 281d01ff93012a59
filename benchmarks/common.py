"""What the benchmarks share: arguments, tables and records."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rare_lightning import cli
from rare_lightning.configuration import read_checkpoint
from rare_lightning.data.scans import Scan, ScanFiles, read_scan
from rare_lightning.data.splits import Split, make_split
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.comparison import MEAN, Comparison
from rare_lightning.evaluation.methods import Method
from rare_lightning.evaluation.protocol import TRUTHS, Row
from rare_lightning.evaluation.tables import mean_defined, read_cases
from rare_lightning.files import write_json, write_text
from rare_lightning.metrics.scores import dice
from rare_lightning.provenance import describe_process


def arguments(description: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse an option for each default, a switch for False, and ``--output``, a JSON file to write.

    An empty list takes the words after ``--``.
    """
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name, value in defaults.items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action="store_true")
            continue
        if value == []:
            parser.add_argument(name, nargs="*", help="after --, for every rare fit")
            continue
        many = {"nargs": "+", "type": type(value[0])} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name}", default=value, **many)
    parser.add_argument("--output", type=Path, help="JSON file for benchmarks/write_results.py")
    return parser.parse_args()


def block(size: list[int]) -> str:
    """``[48, 64, 48]`` -> ``48x64x48``."""
    return "x".join(map(str, size))


def rare(words: Sequence[str]) -> None:
    """``rare`` in this process; stops the script where it fails."""
    print(f"\n$ rare {' '.join(words)}", flush=True)
    if code := cli.main(words):
        raise SystemExit(code)


def train_and_test(run: Path, words: Sequence[str], test_words: Sequence[str] = ()) -> None:
    """Train a run and test its last weights, as far as that is not done."""
    if not (run / "test" / "cases.csv").exists():
        rare(["fit", *words, "--run_dir", str(run), "--trainer.enable_progress_bar", "false", "--resume"])
        rare(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt"), *test_words])


def tested_scans(checkpoint: str, root: str) -> list[tuple[Scan, Scan]]:
    """Image and label of each test case of a checkpoint."""
    test = set(read_checkpoint(checkpoint)["DecathlonDataModule"]["split"]["test"])
    return [
        (read_scan(ScanFiles(case.case_id, case.images)), read_scan(ScanFiles(case.case_id, (case.label,))))
        for case in read_task(root).cases
        if case.case_id in test
    ]


def mean_dice_of(answer: np.ndarray, label: np.ndarray, classes: int) -> float:
    """Over foreground classes, of class indices ``(D, H, W)`` on one grid; the background is one of the classes."""
    pair = torch.from_numpy(answer), torch.from_numpy(label.astype(np.uint8))
    return mean_defined([dice(*(labels == value for labels in pair)) for value in range(1, classes)])


def write_splits(splits: Sequence[dict[str, Sequence[str]]], path: Path) -> None:
    """Write a splits file, or stop the script where another one was written for the runs beside it."""
    content = json.dumps(splits, indent=1)
    if path.exists():
        if path.read_text(encoding="utf-8") != content:
            raise SystemExit(f"{path} splits the cases otherwise: choose another --runs for other settings")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(content, path)


def dice_with_intervals(rows: Sequence[Row]) -> tuple[list[dict[str, str]], dict[str, float]]:
    """Lines of a table of Dice with 95 % intervals over cases, and mean Dice against the fine truth by spacing."""
    test = Comparison([Method("", Path(), list(rows), {})])
    lines, mean = [], {}
    for level, spacing in test.levels.items():
        if level == MEAN:
            continue
        line = {"scan (mm)": spacing}
        for truth in TRUTHS:
            for name in test.classes:
                dice = test.means["dice", "", truth, level, name]
                line[f"{name}, `{truth}`"] = f"{dice.mean:.3f} [{dice.low:.3f}, {dice.high:.3f}]"
        lines.append(line)
        mean[spacing] = test.means["dice", "", "fine", level, test.classes[-1]].mean
    return lines, mean


def shuffled_split(root: str | Path, folds: int) -> tuple[Split, list[str]]:
    """Split of a task with a fifth for the test, and its training cases in a random order, the same every time."""
    ids = [case.case_id for case in read_task(root).cases]
    split = make_split(ids, seed=0, fold=0, folds=folds, test_fraction=0.2)
    return split, np.random.default_rng(0).permutation(split.train).tolist()


def train_and_test_each(
    heading: str,
    trainings: Mapping[str, tuple[Path, Sequence[str]]],
    seeds: Sequence[int],
    more: Sequence[str] = (),
    test_words: Sequence[str] = (),
) -> tuple[list[dict[str, str]], str]:
    """Train and test each with every seed.

    Args:
        heading: Of the column with their names.
        trainings: Name -> its run folders, without the seed that each ends in, and words for ``rare fit``.
        seeds: Of the trainings.
        more: Words for every ``rare fit``, last.
        test_words: For ``rare test``.

    Returns:
        A line of :func:`line_of_run` for each run, and the commit that the last was trained at.
    """
    rows = []
    for seed in seeds:
        for name, (folder, words) in trainings.items():
            run = folder.with_name(f"{folder.name}-{seed}")
            train_and_test(run, [*words, "--seed_everything", str(seed), *more], test_words)
            rows.append({heading: name, "seed": str(seed), **line_of_run(run)})
    return rows, training_record(run / "checkpoints" / "last.ckpt")["commit"]


def line_of_run(run: Path) -> dict[str, str]:
    """Dice of a tested run against the fine truth, by spacing with intervals and in the mean, and what it took."""
    lines, mean = dice_with_intervals(read_cases(run / "test" / "cases.csv"))
    record = training_record(run / "checkpoints" / "last.ckpt")
    return {
        **{line["scan (mm)"]: line["mean, `fine`"] for line in lines},
        "mean": f"{sum(mean.values()) / len(mean):.3f}",
        "epochs": str(record["epochs"]),
        "processor minutes": f"{record['cpu_minutes']:.1f}",
    }


def training_record(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint keeps of its training."""
    record: dict[str, Any] = read_checkpoint(checkpoint)["callbacks"]["TrainingRecord"]
    return record


def save(args: argparse.Namespace, title: str, note: str, rows: list[dict[str, str]]) -> None:
    """Write what was measured, and where, to ``args.output`` if given."""
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"title": title, "note": note, "rows": rows, "process": describe_process()}
        write_json(record, args.output)
