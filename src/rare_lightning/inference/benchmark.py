"""Where the time goes between a scan on disk and its segmentation on disk, by entry level and inference engine."""

import ctypes
import shutil
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode

from rare_lightning.data.geometry import geometry_of_affine
from rare_lightning.data.resampling import resample
from rare_lightning.data.scans import Scan, ScanFiles, read_scan, write_array
from rare_lightning.inference.export import SIDECAR, EngineNetwork, LevelNetwork, export_network, open_exported
from rare_lightning.inference.forward_times import in_turns
from rare_lightning.inference.segmenter import Segmenter
from rare_lightning.networks import MultiResolutionNetwork, UNet
from rare_lightning.networks.grids import Size3, Spacing, level_spacing, triple

Engine = Literal["eager", "compiled", "bfloat16", "onnx", "openvino"]
STAGES = ("read", "prepare", "network", "restore", "write")
UPSAMPLED = "U-Net, up-sampled"


@dataclass(frozen=True)
class Timing:
    """What one engine took for a scan of one level.

    Attributes:
        level: Level whose spacing the scan has.
        engine: What ran the network, or :data:`UPSAMPLED`: a U-Net of the same width, run by PyTorch on the scan
            brought to level 0.
        seconds: Stage -> median seconds.
        memory: Bytes by which the process grew at most in the first run.
        flops: Floating point operations of the network's convolutions and matrix products.
    """

    level: int
    engine: str
    seconds: dict[str, float]
    memory: int
    flops: int

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())


def time_stages(
    segmenter: Segmenter, scan: Scan, engines: list[Engine], folder: Path, repeats: int, say: Callable[[str], None]
) -> list[Timing]:
    """Time every stage for the scan at the spacing of each level, with each engine and with an up-sampling U-Net.

    Args:
        segmenter: Of one checkpoint.
        scan: Brought to the spacing of each level.
        engines: Which to compare.
        folder: For temporary files.
        repeats: Runs of each, taken in turns, after one that does not count.
        say: Told what is going on.

    Raises:
        UserError: If an engine is not installed.
    """
    network = segmenter.networks[0]
    models: dict[str, Segmenter] = {name: _run_by(name, segmenter, folder) for name in engines}
    unet = segmenter.run_by(_unet_like(network, len(segmenter.channels), len(segmenter.classes)))
    models[UPSAMPLED] = unet
    results: list[Timing] = []
    for level in sorted(network.levels, reverse=True):
        path = _scan_of_level(scan, segmenter, level, folder)
        if not results:
            _run(segmenter, path, folder)  # loads what every first run loads
        say(f"level {level}: {' x '.join(map(str, read_scan(path).geometry.size))} voxels")
        memory = {name: _peak(partial(_run, model, path, folder)) for name, model in models.items()}
        runs = in_turns({name: partial(_run, model, path, folder) for name, model in models.items()}, repeats)
        for name, model in models.items():
            seconds = {stage: median(run[stage] for run in runs[name]) for stage in STAGES}
            flops = _flops(unet if model is unet else segmenter, path)
            results.append(Timing(level, name, seconds, memory[name], flops))
    return results


def as_rows(timings: Sequence[Timing], segmenter: Segmenter) -> list[dict[str, Any]]:
    """Timings as plain values, with the ratios that they are compared by, from the finest level on."""
    totals = {(timing.level, timing.engine): timing for timing in timings}
    rows = []
    for timing in sorted(timings, key=lambda timing: timing.level):
        spacing = level_spacing(segmenter.preprocessing.spacing, segmenter.level_strides[timing.level])
        row: dict[str, Any] = {
            "level": timing.level,
            "spacing mm": round(prod(spacing) ** (1 / 3), 3),
            "engine": timing.engine,
            **{f"{stage} ms": 1000 * seconds for stage, seconds in timing.seconds.items()},
            "total ms": 1000 * timing.total,
            "times faster than up-sampling": totals[timing.level, UPSAMPLED].total / timing.total,
        }
        eager = totals.get((timing.level, "eager"))
        if eager is not None:
            row["network: times faster than eager"] = eager.seconds["network"] / timing.seconds["network"]
        row |= {"memory MiB": timing.memory / 2**20, "GFLOP": timing.flops / 1e9}
        rows.append(row)
    return rows


def installed_engines() -> list[Engine]:
    """Every engine that can run here."""
    engines: list[Engine] = ["eager", "bfloat16"]
    if shutil.which("g++"):  # torch.compile writes C++ for CPUs
        engines.append("compiled")
    needed: dict[Engine, tuple[str, ...]] = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("openvino",)}
    return engines + [name for name, modules in needed.items() if all(map(find_spec, modules))]


def noise_scan(size: Size3, spacing: Spacing, channels: int) -> Scan:
    """A scan of noise, in which no network has an easier task than in another."""
    array = np.random.default_rng(0).normal(size=(channels, *size)).astype(np.float32)
    return Scan(array, geometry_of_affine(np.diag([*spacing, 1.0]), size))


def _run_by(name: Engine, segmenter: Segmenter, folder: Path) -> Segmenter:
    """The segmenter, with an engine to run its network.

    Raises:
        UserError: If the engine is not installed.
    """
    network = segmenter.networks[0]
    if name == "eager" or name == "bfloat16":
        other = segmenter.run_by(network)
        other.precision = "32-true" if name == "eager" else "bf16-mixed"
        return other
    needed = {level: segmenter.forward_bytes(level) for level in network.levels}
    if name == "onnx" or name == "openvino":
        export_network(network, segmenter.facts, needed, folder / name, name, network.levels)
        return segmenter.run_by(open_exported(folder / name / SIDECAR)[0])
    run = {level: torch.compile(LevelNetwork(network, level)) for level in network.levels}
    return segmenter.run_by(
        EngineNetwork(run, needed, segmenter.level_strides, network.coarsest_stride, network.answer_grid)
    )


def _unet_like(network: MultiResolutionNetwork, channels: int, classes: int) -> UNet:
    """A U-Net for level 0 with the depth, strides and widths of a RARE-UNet; its weights make no difference here."""
    alike = ("features", "depth", "strides", "normalization", "activation", "residual")
    arguments = {name: value for name, value in network.init_args.items() if name in alike}
    return UNet(channels, classes, levels=0, **arguments).eval()


def _scan_of_level(scan: Scan, segmenter: Segmenter, level: int, folder: Path) -> ScanFiles:
    """File with the scan as it would have been taken at a level's spacing, in 16 bits as scanners write."""
    spacing, size = scan.geometry.canonical_spacing, scan.geometry.canonical_size
    wanted = level_spacing(segmenter.preprocessing.spacing, segmenter.level_strides[level])
    voxels = triple(max(1, round(n * mm / new)) for n, mm, new in zip(size, spacing, wanted, strict=True))
    array = resample(torch.from_numpy(scan.canonical), spacing, wanted, voxels).numpy()
    array = (array * (30000 / max(1.0, float(np.abs(array).max())))).astype(np.int16)
    geometry = geometry_of_affine(np.diag([*wanted, 1.0]), voxels)
    path = folder / f"level_{level}.nii.gz"
    write_array(array if len(array) > 1 else array[0], Scan(array, geometry), path)
    return ScanFiles(path.name, (path,))


def _run(segmenter: Segmenter, files: ScanFiles, folder: Path) -> dict[str, float]:
    """Seconds of each stage."""
    times = [time.perf_counter()]
    scan = read_scan(files)
    times.append(time.perf_counter())
    prepared = segmenter.prepare(scan, files.name)
    times.append(time.perf_counter())
    window = segmenter.window(prepared)
    probabilities = segmenter.probabilities(prepared, window)
    times.append(time.perf_counter())
    segmentation = segmenter.restore(probabilities, prepared, window)
    times.append(time.perf_counter())
    write_array(segmentation.labels, scan, folder / "answer.nii.gz")
    times.append(time.perf_counter())
    return dict(zip(STAGES, np.diff(times).tolist(), strict=True))


def _peak(task: Callable[[], object]) -> int:
    """Bytes by which the process grows at most while a task runs."""
    process, peak, done = psutil.Process(), 0, threading.Event()
    if sys.platform == "linux":
        # Else the task grows, unseen, into what others have freed and glibc has kept.
        with suppress(AttributeError):  # of other C libraries
            ctypes.CDLL(None).malloc_trim(0)

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, process.memory_info().rss)

    before = process.memory_info().rss
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        task()
    finally:
        done.set()
        watcher.join()
    return max(0, max(peak, process.memory_info().rss) - before)


@torch.inference_mode()
def _flops(segmenter: Segmenter, files: ScanFiles) -> int:
    prepared = segmenter.prepare(read_scan(files), files.name)
    with FlopCounterMode(display=False) as counter:
        segmenter.networks[0]({prepared.route.level: prepared.image[None]})
    return int(counter.get_total_flops())
