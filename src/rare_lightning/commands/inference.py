"""``rare predict``, ``export`` and ``benchmark``."""

import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator

from rare_lightning.callbacks import PredictionWriter
from rare_lightning.commands.output import output_folder
from rare_lightning.data.routing import RoutingStrategy
from rare_lightning.data.scans import find_scans, read_scan
from rare_lightning.data.voxels import channel_stem
from rare_lightning.errors import UserError, few
from rare_lightning.evaluation.timings import write_timings
from rare_lightning.inference import PredictionModule, ScanDataset, Segmenter
from rare_lightning.inference.benchmark import Engine, as_rows, installed_engines, noise_scan, time_stages
from rare_lightning.inference.export import EngineNetwork, Format, digest, export_network
from rare_lightning.inference.segmenter import Precision
from rare_lightning.processes import sigterm_before_loaders


def predict(
    ckpt_path: list[str],
    input: list[str],
    output: str,
    grid: Literal["input", "base"] = "input",
    level: int | None = None,
    routing: RoutingStrategy = "detail",
    mirror: bool = False,
    memory: float | None = None,
    precision: Precision = "32-true",
    preview: bool = False,
    probabilities: bool = False,
    resume: bool = False,
    accelerator: str = "auto",
    devices: int | str = "auto",
    num_workers: int = 1,
) -> None:
    """Segment scans of any resolution, each on its own grid.

    Args:
        ckpt_path: Checkpoint of rare fit, or folder of rare export; several are averaged.
        input: Files, folders, DICOM folders, patterns, or CSV lists (image[,image2,...]).
        output: Folder for NAME.nii.gz (or the scan's own format), NAME.json and volumes.csv.
        grid: "input" answers on the scan's own grid, "base" at the base spacing in canonical orientation.
        level: Enter every scan at this level, whatever its spacing.
        routing: "detail" takes the coarsest level that keeps a scan's detail, or a coarser one that stretches no axis
            beyond twice; "mean" the one nearest to its mean spacing, "finest" to that of its finest axis.
        mirror: Average over mirror images along the axes that training flipped: twice the work for each.
        memory: GiB that each device may use; three quarters of what it has by default, which processes on the CPU
            share. Scans that would need more are segmented in windows.
        precision: "bf16-mixed" takes half the time on devices that multiply bfloat16.
        preview: Write NAME.png.
        probabilities: Write NAME_probabilities.nii.gz, one channel per class.
        resume: Skip scans that have an answer in the output folder, with all that is wanted beside it.
        accelerator: As of Lightning's Trainer.
        devices: As of Lightning's Trainer; the scans are spread over them.
        num_workers: Processes that read scans beside the network.

    Raises:
        UserError: If there is nothing to do, or scans could not be segmented; it lists them with their reasons.
    """
    segmenter = Segmenter(ckpt_path, routing, mirror, memory=memory, precision=precision)
    if level is not None:
        _refuse_other_level(level, segmenter)
    folder = Path(output).expanduser()
    scans = find_scans(input, channels=len(segmenter.channels), besides=folder)
    stems = Counter(channel_stem(scan.paths[0]) for scan in scans if channel_stem(scan.paths[0]) != scan.name)
    if len(segmenter.channels) == 1 and (several := [stem for stem, count in stems.items() if count > 1]):
        print(f"The model takes one channel: files that are numbered as channels are a scan each ({few(several)})")
    models = [f"{Path(path).name} {digest(path)}" for path in ckpt_path]  # every run has a best.ckpt
    settings = {
        "model": models,
        "grid": grid,
        "level": level,
        "routing": routing,
        "mirror": mirror,
        "precision": precision,
    }
    normalize = segmenter.preprocessing.normalize
    window = None if isinstance(normalize, str) else normalize
    writer = PredictionWriter(folder, segmenter.classes, settings, preview, probabilities, window)
    for scan in scans:
        if writer.path_of(scan).resolve() in {path.resolve() for path in scan.paths}:
            raise UserError(f"{folder}: the answer to {scan.paths[0]} would take its place; choose another --output")
    if num_workers < 0:
        raise UserError(f"--num_workers ({num_workers}) must be >= 0")
    answered = [scan for scan in scans if writer.path_of(scan).exists()]
    if answered and not resume:
        names = few(scan.name for scan in answered)
        raise UserError(f"{folder}: holds answers already ({names}): --resume skips those")
    for scan in answered:
        writer.refuse_other_settings(scan)
    with output_folder(output):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    waiting = [scan for scan in scans if not writer.is_done(scan)]
    if len(waiting) < len(scans):
        print(f"{len(scans) - len(waiting)} of {len(scans)} scans have answers and are skipped")
    if waiting:
        dataset = ScanDataset(waiting, segmenter, level, keep_voxels=preview)
        trainer = _trainer(accelerator, devices, writer, len(waiting))
        segmenter.processes = trainer.world_size
        module, loader = (
            PredictionModule(segmenter, grid == "base", probabilities),
            dataset.loader(min(num_workers, len(waiting))),
        )
        with sigterm_before_loaders(trainer):
            trainer.predict(module, loader, return_predictions=False)
        if not trainer.is_global_zero:
            return
    else:
        writer.write_volumes()
    if writer.failures:
        listing = "\n  ".join(writer.failures)
        raise UserError(f"{len(writer.failures)} of {len(scans)} scans were not segmented:\n  {listing}")
    print(f"{len(waiting)} segmentations in {folder}")


def export(ckpt_path: str, format: Format, output: str, level: int | Literal["all"] = "all") -> None:
    """Write the network of a checkpoint for another inference engine, one file per entry level.

    Args:
        ckpt_path: Checkpoint of rare fit.
        format: onnx, openvino or torchscript.
        output: New folder for level_0, level_1, ... and model.json, which says what preprocessing needs.
        level: One level, or all.

    Raises:
        UserError: If the folder holds something already, the engine is not installed, or what was exported does not
            answer as the checkpoint does.
    """
    segmenter = _of_checkpoint(ckpt_path)
    if level == "all":
        levels = list(segmenter.level_strides)
    else:
        _refuse_other_level(level, segmenter)
        levels = [level]
    with output_folder(output) as folder:
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty; choose a new folder")
        needed = {entry: segmenter.forward_bytes(entry) for entry in levels}
        differences = export_network(segmenter.networks[0], segmenter.facts, needed, folder, format, levels)
    for entry, difference in differences.items():
        print(f"level {entry}: probabilities differ from PyTorch's by at most {difference:.1e}")
    print(f"Next: rare predict --ckpt_path {folder} --input SCANS --output FOLDER")


def benchmark(
    ckpt_path: str,
    output: str,
    input: str | None = None,
    size: tuple[int, int, int] = (128, 128, 128),
    engines: list[Engine] | None = None,
    repeats: int = 5,
) -> None:
    """Time reading, preprocessing, network, restoring and writing at each level, beside up-sampling for a U-Net.

    Args:
        ckpt_path: Checkpoint of rare fit.
        output: Folder for benchmark.csv, benchmark.json, benchmark.md and benchmark.png.
        input: A scan, brought to the spacing of each level; noise by default.
        size: Of the noise, in voxels of level 0.
        engines: Some of eager, compiled, bfloat16, onnx, openvino; by default all that are installed.
        repeats: Runs of each, taken in turns.

    Raises:
        UserError: If an engine is not installed, the checkpoint is an exported one, or the scan is too small for it.
    """
    segmenter = _of_checkpoint(ckpt_path)
    if repeats < 1 or min(size) < 1:
        raise UserError(f"--repeats ({repeats}) and --size {list(size)} must be positive")
    if input is None:
        scan = noise_scan(size, segmenter.preprocessing.spacing, len(segmenter.channels))
        what = f"noise of {'x'.join(map(str, size))} voxels at level 0"
    else:
        found = find_scans([input], channels=len(segmenter.channels))
        if len(found) > 1:
            raise UserError(f"--input {input}: holds {len(found)} scans; give one")
        scan, what = read_scan(found[0]), found[0].name
    with output_folder(output) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".running-") as temporary:
            chosen = engines or installed_engines()
            try:
                timings = time_stages(segmenter, scan, chosen, Path(temporary), repeats, print)
            except ValueError as error:  # of a network, at the level that the scan is too small for
                raise UserError(f"{what}: {error}. Take a larger --size or --input") from error
        note = f"{what}, {torch.get_num_threads()} threads, median of {repeats}"
        write_timings(as_rows(timings, segmenter), note, folder)
    print((folder / "benchmark.md").read_text(encoding="utf-8"))


def _of_checkpoint(path: str) -> Segmenter:
    """A segmenter whose network is PyTorch's."""
    segmenter = Segmenter(path)
    if isinstance(segmenter.networks[0], EngineNetwork):
        raise UserError(f"{path}: is exported already; give the checkpoint of rare fit")
    return segmenter


def _refuse_other_level(level: int, segmenter: Segmenter) -> None:
    if level not in segmenter.level_strides:
        raise UserError(f"--level {level}: the model has levels {', '.join(map(str, segmenter.level_strides))}")


def _trainer(accelerator: str, devices: int | str, writer: PredictionWriter, scans: int) -> L.Trainer:
    """Trainer that uses no more devices than there are scans: Lightning refuses to leave one without."""
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "callbacks": [writer]}
    try:
        trainer = L.Trainer(accelerator=accelerator, devices=devices, **options)
        on_cpu, processes = isinstance(trainer.accelerator, CPUAccelerator), trainer.world_size
        if processes > scans:
            trainer = L.Trainer(accelerator=accelerator, devices=scans, **options)
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"--accelerator {accelerator} --devices {devices}: {error}") from error
    if on_cpu and processes > (os.cpu_count() or 1):  # Lightning takes any number of processes for that of devices
        raise UserError(f"--devices {devices}: this machine has {os.cpu_count()} CPU cores")
    return trainer
