"""Peak memory and time of `rare predict` on one large scan, by the memory it may use; and how alike the answers are.

python benchmarks/memory.py [--checkpoint runs/brats/checkpoints/best.ckpt --input scan.nii.gz] [--memory 20 6 4]
    [--whole] [--output docs/results/memory.json]

The first amount is what the others are compared with. With --whole, a network that was trained on patches is used as
one that was trained on whole volumes: in windows only where the memory asks for them. Without a checkpoint, an
untrained network of 4 classes segments noise of 512x512x300 voxels of 0.7x0.7x1 mm; and with --size, noise of another
size.
"""

import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import SimpleITK as sitk
import torch

from common import arguments, block, save
from rare_lightning import RAREUNet
from rare_lightning.evaluation.tables import markdown_table


def untrained(path: Path) -> Path:
    """Checkpoint of a network with 4 classes for 1 mm scans."""
    torch.manual_seed(0)
    network = RAREUNet(1, 4, features=8, depth=4, levels=3)
    data = {
        "channels": ["noise"],
        "classes": ["background", "one", "two", "three"],
        "level_strides": [list(network.level_stride(level)) for level in network.levels],
        "preprocessing": {"spacing": [1.0, 1.0, 1.0], "normalize": "zscore", "foreground": "all"},
    }
    described = {"class_path": "rare_lightning.RAREUNet", "init_args": network.init_args}
    weights = {f"network.{name}": weight for name, weight in network.state_dict().items()}
    content = {"state_dict": weights, "hyper_parameters": {"network": described}, "DecathlonDataModule": data}
    torch.save({**content, "datamodule_hyper_parameters": {}}, path)
    return path


def without_windows(checkpoint: str, path: Path) -> Path:
    """Copy of a checkpoint that does not tell of patches."""
    content = torch.load(checkpoint, weights_only=True)
    content["hyper_parameters"]["window_size"] = None
    torch.save(content, path)
    return path


def noise(path: Path, size: list[int]) -> Path:
    """Scan of int16, as a scanner would write it."""
    array = np.random.default_rng(0).integers(0, 1000, size[::-1], dtype=np.int16)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.7, 1.0))
    sitk.WriteImage(image, str(path))
    return path


def run(words: list[str]) -> tuple[float, float, str]:
    """Peak memory in GiB of the command and its children, seconds, and what it printed."""
    start, peak = time.perf_counter(), 0
    command = [sys.executable, "-c", "import sys; from rare_lightning.cli import main; sys.exit(main())", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        main = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.Error):  # a process has just ended; pages that several share count once
                peak = max(peak, sum(one.memory_full_info().pss for one in [main, *main.children(recursive=True)]))
            time.sleep(0.05)
        printed = process.stdout.read() if process.stdout else ""
    if process.returncode:
        raise RuntimeError(f"rare {' '.join(words)} ended with {process.returncode}: {printed}")
    return peak / 2**30, time.perf_counter() - start, printed


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, checkpoint="", input="", memory=[20.0, 6.0, 4.0], size=[512, 512, 300], whole=False)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = args.checkpoint or untrained(folder / "untrained.ckpt")
        if args.whole:
            checkpoint = without_windows(checkpoint, folder / Path(checkpoint).name)
        scan = args.input or noise(folder / "noise.nii.gz", args.size)
        reference: np.ndarray | None = None
        for memory in args.memory:
            output = folder / str(memory)
            words = ["predict", "--ckpt_path", checkpoint, "--input", scan, "--output", output, "--memory", memory]
            peak, seconds, printed = run(list(map(str, words)))
            (written,) = output.glob("*.nii.gz")
            labels = sitk.GetArrayFromImage(sitk.ReadImage(str(written)))
            reference = labels if reference is None else reference
            either = (labels > 0) | (reference > 0)
            rows.append(
                {
                    "--memory (GiB)": f"{memory:g}",
                    "windows": printed.split("windows of ")[1].split()[0] if "windows of" in printed else "whole",
                    "peak (GiB)": f"{peak:.2f}",
                    "time / that of the first": f"{seconds / float(rows[0]['seconds']) if rows else 1:.2f}",
                    "seconds": f"{seconds:.1f}",
                    "equal labels": f"{(labels == reference).mean():.4f}",
                    "equal where either is foreground": f"{(labels == reference)[either].mean():.4f}",
                }
            )
            print(rows[-1], flush=True)
    note = f"{block(list(labels.shape[::-1]))} voxels; {Path(checkpoint).name}"
    save(args, f"Memory of `rare predict`, {Path(scan).name}", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
