"""``rare evaluate``, ``compare`` and ``nnunet``."""

from pathlib import Path

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt
from rich.console import Console

from rare_lightning.baselines.nnunet import Device, TrainingSettings, run_nnunet
from rare_lightning.commands.output import output_folder
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.pyramid import LabelDownsampling
from rare_lightning.data.task import check_class_names, check_regions, each_class, read_task
from rare_lightning.errors import UserError, few
from rare_lightning.evaluation.comparison import Comparison
from rare_lightning.evaluation.comparison_page import Cost, comparison_table, flattered
from rare_lightning.evaluation.comparison_report import write_comparison
from rare_lightning.evaluation.figures import plot_dice_by_resolution
from rare_lightning.evaluation.label_maps import score_label_maps
from rare_lightning.evaluation.methods import read_methods
from rare_lightning.evaluation.tables import terminal_table, write_scores
from rare_lightning.inference import Segmenter
from rare_lightning.inference.forward_times import time_forwards


def evaluate(
    predictions: list[str],
    labels: str,
    output: str,
    levels: list[int] | None = None,
    classes: list[str] | None = None,
    regions: dict[str, list[int]] | None = None,
    nsd_tolerance_mm: NonNegativeFloat = 1.0,
) -> None:
    """Score label maps of any tool, on the grids of their labels, with the scores and files of rare test.

    Args:
        predictions: Folders of label maps, named as the labels are; one folder for each level of scans.
        labels: Folder of full-resolution labels, named as the label maps; or a task of the Decathlon or of
            nnU-Net. There may be more than were predicted.
        output: Folder for cases.csv, summary.json and dice_by_resolution.png.
        levels: Level of the scans of each folder; 0, 1, ... by default.
        classes: Names of the values 1, 2, ..., as "[liver, tumour]"; those of the task's dataset.json by default.
        regions: What is scored in place of the classes, as "{whole tumour: [1, 2, 3]}"; those of the task's
            dataset.json by default.
        nsd_tolerance_mm: Surface distance that NSD forgives, in mm.

    Raises:
        UserError: If a label map has no label, or is not one of these classes, or folders hold different cases.
    """
    levels = list(range(len(predictions))) if levels is None else levels
    if len(levels) != len(set(levels)) or len(levels) != len(predictions) or min(levels) < 0:
        raise UserError(f"--levels {levels} must be one level for each of {len(predictions)} folders of predictions")
    label_folder = Path(labels).expanduser()
    if not label_folder.is_dir():
        raise UserError(f"{label_folder}: no such folder")
    root = next((root for root in (label_folder, label_folder.parent) if (root / "dataset.json").is_file()), None)
    # Labels in a folder of their own, with classes given, need no task that can be trained on.
    task = read_task(root) if root is not None and (classes is None or root == label_folder) else None
    if classes is not None:
        names = ["background", *classes]
        scored = each_class(names)
    elif task is not None:
        names, scored = [*task.classes], task.regions
    else:
        raise UserError(f"{labels}: is in no Decathlon task that names the classes; give --classes '[liver, tumour]'")
    check_class_names(names, "--classes")
    if regions is not None:
        check_regions(regions, names, "--regions")
        scored = regions
    truths = task if task is not None and root == label_folder else label_folder
    folders = {level: Path(folder).expanduser() for level, folder in zip(levels, predictions, strict=True)}
    rows, unpredicted = score_label_maps(folders, truths, names, scored, nsd_tolerance_mm)
    protocol = {"label_downsampling": None, "nsd_tolerance_mm": nsd_tolerance_mm}
    with output_folder(output) as folder:
        summary = write_scores(rows, folder, protocol, None, without_prediction=len(unpredicted))
        plot_dice_by_resolution(summary, folder / "dice_by_resolution.png")
    Console().print(terminal_table(summary, "fine"))
    if unpredicted:
        labels_found = summary["cases"] + len(unpredicted)
        print(f"{len(unpredicted)} of {labels_found} labels have no prediction and are not scored: {few(unpredicted)}")
    print(f"Report in {folder}: cases.csv, summary.json, dice_by_resolution.png")


def compare(
    runs: list[str],
    output: str,
    timing: bool = True,
    size: tuple[int, int, int] | None = None,
    repeats: int = 5,
) -> None:
    """Lay the tests of several methods beside each other: means with intervals, paired tests, figures, times.

    Args:
        runs: Run folders, or cases.csv files, as PATH or NAME=PATH; the first is the reference.
        output: Folder for comparison.md, comparison.html, comparison.csv, comparison.json and figures.
        timing: Time the networks of runs that hold checkpoints/best.ckpt beside each other, here and now.
        size: Of the volume for that, in voxels of level 0; by default the median of the test cases.
        repeats: Runs of each network, taken in turns.

    Raises:
        UserError: If the runs were not tested on the same cases, levels and classes by the same protocol.
    """
    if repeats < 1 or (size is not None and min(size) < 1):
        raise UserError(f"--repeats ({repeats}) and --size {list(size or ())} must be positive")
    comparison = Comparison(read_methods(runs))
    costs, timed = _costs(comparison, size, repeats) if timing else ({}, "Not measured.")
    with output_folder(output) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        write_comparison(comparison, costs, timed, folder)
    console = Console()
    for truth in comparison.truths:
        console.print(comparison_table(comparison, truth))
    for line in (*flattered(comparison), *filter(None, [comparison.left_out])):
        print(line)
    print(f"Comparison in {folder}: comparison.html, comparison.md, comparison.csv, comparison.json, figures")


def _costs(comparison: Comparison, size: tuple[int, int, int] | None, repeats: int) -> tuple[dict[str, Cost], str]:
    """Cost of every method whose network is at hand, and how it was measured."""
    try:
        segmenters = {m.name: Segmenter(m.checkpoint) for m in comparison.methods if m.checkpoint.is_file()}
    except UserError as error:
        raise UserError(f"{error}; --timing false compares without the networks") from error
    sizes = [method.summary["median_size"] for method in comparison.methods if "median_size" in method.summary]
    if size is None and sizes:
        x, y, z = sizes[0]
        size = x, y, z
    times: dict[str, dict[int, float]] = {}
    if not segmenters:
        timed = "Not measured: no run holds `checkpoints/best.ckpt`."
    elif size is None:
        timed = "Not measured: no `summary.json` names the median size of the test cases, and no `--size` was given."
    else:
        times = time_forwards(segmenters, size, repeats)
        timed = (
            f"A forward on noise of {'x'.join(map(str, size))} voxels at level 0, {torch.get_num_threads()} threads, "
            f"median of {repeats} taken in turns; in parentheses, times that of {comparison.names[0]}."
        )
    costs = {}
    for name, segmenter in segmenters.items():
        parameters = sum(parameter.numel() for parameter in segmenter.networks[0].parameters())
        costs[name] = Cost(parameters, {str(level): 1000 * s for level, s in times.get(name, {}).items()})
    return costs, timed


def nnunet(
    root: str,
    output: str,
    environment: str = ".venv-nnunet",
    minutes: float | None = None,
    iterations: int | None = None,
    trainer: str = "nnUNetTrainer",
    configuration: str = "3d_fullres",
    device: Device = "cpu",
    mirror: bool = True,
    num_workers: int = 1,
    seed_everything: NonNegativeInt = 0,
    levels: int = 3,
    depth: int = 4,
    strides: int | list[list[int]] = 2,
    spacing: list[float] | None = None,
    label_downsampling: LabelDownsampling = "majority",
    seed: int = 0,
    fold: int = 0,
    folds: int = 5,
    test_fraction: float = 0.2,
    splits_file: str | None = None,
    regions: dict[str, list[int]] | None = None,
    nsd_tolerance_mm: NonNegativeFloat = 1.0,
    dry_run: bool = False,
) -> None:
    """Train nnU-Net v2 on the same cases, and score it on the same test cases at every level.

    Args:
        root: Folder of the task.
        output: Folder for nnU-Net's own folders, its logs, and native/test and upsampled/test with cases.csv and
            summary.json; a run that was interrupted goes on there.
        environment: Virtual environment with nnU-Net, made by make nnunet-env.
        minutes: Time to train, the learning rate falling over it; as many epochs as the trainer says by default.
        iterations: Iterations of an epoch, 250 by default; take fewer where those last longer than some minutes.
        trainer: nnU-Net's trainer class.
        configuration: Of nnU-Net's plans.
        device: Where nnU-Net runs.
        mirror: Average predictions over mirror images, as nnU-Net does by default.
        num_workers: Processes beside nnU-Net's own, for augmentation and for files.
        seed_everything: Of the weights.
        levels: As of rare fit.
        depth: As of rare fit.
        strides: As of rare fit.
        spacing: Base spacing in mm, as of rare fit.
        label_downsampling: As of rare fit.
        seed: Of the split.
        fold: As of rare fit.
        folds: As of rare fit.
        test_fraction: As of rare fit.
        splits_file: Use the split of this file, such as a run's splits.json.
        regions: What is scored, as of rare fit; nnU-Net is trained on the classes.
        nsd_tolerance_mm: Surface distance that NSD forgives.
        dry_run: Print nnU-Net's commands and their environment, and do nothing.

    Raises:
        UserError: If nnU-Net is not installed or fails, or the output folder holds something else.
    """
    settings = TrainingSettings(
        trainer=trainer,
        minutes=minutes,
        iterations=iterations,
        seed=seed_everything,
        configuration=configuration,
        device=device,
        mirror=mirror,
        num_workers=num_workers,
    )
    data = DecathlonDataModule(
        root,
        levels=levels,
        depth=depth,
        strides=strides,
        spacing=spacing,
        label_downsampling=label_downsampling,
        seed=seed,
        fold=fold,
        folds=folds,
        test_fraction=test_fraction,
        splits_file=splits_file,
        regions=regions,
    )
    with output_folder(output) as folder:
        run_nnunet(data, folder, Path(environment).expanduser(), settings, nsd_tolerance_mm, dry_run)
