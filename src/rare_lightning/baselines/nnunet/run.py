"""nnU-Net from the data to the tables: every step once, then the scores."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from torch import Tensor

from rare_lightning.baselines.nnunet.dataset import (
    FEEDS,
    Feed,
    LevelScan,
    dataset_name,
    level_scans,
    levels_fed,
    scan_name,
    write_dataset,
    write_scans,
    write_splits,
)
from rare_lightning.baselines.nnunet.scores import read_softmax, score_case
from rare_lightning.baselines.nnunet.steps import (
    ELSEWHERE,
    Folders,
    TrainingSettings,
    describe_steps,
    refuse_missing_environment,
    run_step,
    steps_of,
    training_record,
    variables_of,
)
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.integrity import check_cases
from rare_lightning.data.routing import FULL
from rare_lightning.data.task import Case
from rare_lightning.errors import UserError
from rare_lightning.evaluation.protocol import TRUTHS, Row
from rare_lightning.evaluation.tables import terminal_table, write_scores
from rare_lightning.files import write_json
from rare_lightning.networks.grids import Grid


def run_nnunet(
    data: DecathlonDataModule,
    output: Path,
    environment: Path,
    settings: TrainingSettings,
    nsd_tolerance_mm: float = 1.0,
    dry_run: bool = False,
) -> None:
    """Train nnU-Net on a split, and score it on the test cases at every level as ``rare test`` does.

    Args:
        data: Task, split, levels and base spacing.
        output: Folder for everything; what is done there is not done again.
        environment: Virtual environment that nnU-Net is installed in.
        settings: Of the training.
        nsd_tolerance_mm: Surface distance that NSD forgives.
        dry_run: Print nnU-Net's commands and do nothing.

    Raises:
        UserError: If there are no test cases, nnU-Net is not installed or fails, or the folder holds a comparison with
            other settings.
    """
    if not data.split.test:
        raise UserError("the split holds out no test cases: raise --test_fraction, or name them in --splits_file")
    folders = Folders(output.resolve(), dataset_name(data.task), settings)
    levels = list(range(len(data.strides)))
    scans: dict[Feed, list[str]] = {
        feed: [scan_name(case_id, level) for case_id in data.split.test for level in levels_fed(feed, levels)]
        for feed in FEEDS
    }
    steps = steps_of(folders, scans)
    if dry_run:
        print(describe_steps(steps, variables_of(folders), environment))
        return
    refuse_missing_environment(environment)
    _keep_settings(data, folders)
    _write_data(data, folders)
    for step in steps:
        run_step(step, folders, environment)
    for feed, rows in _score(data, folders, nsd_tolerance_mm).items():
        _write_report(feed, rows, data, folders, nsd_tolerance_mm)


def _keep_settings(data: DecathlonDataModule, folders: Folders) -> None:
    """Write down what everything in the folder depends on, and never mix it with something else."""
    cases = data.cases_of(data.split.cases)
    wanted = {
        "task": data.task.name,
        "strides": [list(stride) for stride in data.strides],
        "spacing": list(data.preprocessing.spacing),
        "split": data.split.as_dict(),
        **({"upsample": data.upsample} if any(data.finest_grids(case) != FULL for case in cases) else {}),
        **{name: value for name, value in asdict(folders.settings).items() if name not in ELSEWHERE},
    }
    path = folders.root / "settings.json"
    if path.is_file():
        there = json.loads(path.read_text(encoding="utf-8"))
        differing = [name for name in wanted if there.get(name) != wanted[name]]
        if differing:
            raise UserError(f"{folders.root}: made with another {', '.join(differing)}; choose another --output")
        return
    folders.root.mkdir(parents=True, exist_ok=True)
    write_json(wanted, path)


def _write_data(data: DecathlonDataModule, folders: Folders) -> None:
    """Training data and test scans, where they are not there yet."""
    split = data.split
    if not folders.raw.is_dir():
        check_cases(data.task, data.cases_of(split.cases))
        write_dataset(data.task, split, folders.raw)
    write_splits(split, folders.preprocessed / "splits_final.json")
    if not folders.scans.is_dir():
        write_scans(((case.case_id, _scans_of(case, data)) for case in data.cases_of(split.test)), folders.scans)


def _scans_of(case: Case, data: DecathlonDataModule) -> list[LevelScan]:
    subject = data.preprocessing.on_base_grid(case, data.finest_grids(case))
    return level_scans(subject, data.strides, data.label_downsampling)


def _score(data: DecathlonDataModule, folders: Folders, nsd_tolerance_mm: float) -> dict[Feed, list[Row]]:
    """Scores of the answers to every test case, by feed."""
    rows: dict[Feed, list[Row]] = {feed: [] for feed in FEEDS}
    for case in data.cases_of(data.split.test):
        scans = _scans_of(case, data)
        for feed in FEEDS:
            softmax_of = partial(_answer, data, folders, feed, case.case_id)
            grids = data.finest_grids(case)
            rows[feed] += score_case(case.case_id, scans, softmax_of, data.regions, nsd_tolerance_mm, grids)
    return rows


def _answer(
    data: DecathlonDataModule, folders: Folders, feed: Feed, case_id: str, scan: LevelScan
) -> tuple[Tensor, Grid]:
    """nnU-Net's softmax ``(C, D, H, W)`` of a scan, and the grid it is on."""
    grid: Grid = "base" if feed == "upsampled" else "level"
    shape = [n * (s if grid == "base" else 1) for n, s in zip(scan.label.shape, scan.stride, strict=True)]
    # At level 0 both feeds are one.
    folder = folders.answers(feed if levels_fed(feed, [scan.level]) else "native")
    return read_softmax(folder / f"{scan_name(case_id, scan.level)}.npz", len(data.task.classes), shape), grid


def _write_report(
    feed: Feed, rows: list[Row], data: DecathlonDataModule, folders: Folders, nsd_tolerance_mm: float
) -> None:
    """``ROUTE/test/cases.csv`` and ``summary.json``, and the table on the terminal."""
    folder = folders.root / feed / "test"
    protocol = {"label_downsampling": data.label_downsampling, "nsd_tolerance_mm": nsd_tolerance_mm}
    summary = write_scores(rows, folder, protocol, training_record(folders))
    console = Console()
    console.print(f"nnU-Net, {feed} scans: {folder}", highlight=False)
    for truth in TRUTHS:
        console.print(terminal_table(summary, truth))
