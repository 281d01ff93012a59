"""Memory of a training step by width, depth, patch and precision, counted without a GPU.

python benchmarks/training_memory.py [--output docs/results/training_memory.json]

Counted are the tensors that the forward keeps for the backward, each storage once, of shapes alone (torch's
FakeTensorMode), and 16 bytes a parameter: weights, gradients and AdamW's two means, of which Muon has one. What kernels
and gradients need on the way comes on top; by how much is told by the first row, which is also run, on the CPU.
"""

import threading
import time
from contextlib import nullcontext

import psutil
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from common import arguments, block, save
from rare_lightning import RAREUNet
from rare_lightning.evaluation.tables import markdown_table
from rare_lightning.objectives import MultiResolutionLoss

CHANNELS, CLASSES, BATCH, LEVELS = 4, 4, 2, 3
CONFIGURATIONS = (  # features, depth, patch, precision
    (16, 4, 64, "32-true"),
    (16, 4, 96, "32-true"),
    (16, 4, 96, "bf16-mixed"),
    (32, 5, 96, "bf16-mixed"),
    (32, 5, 128, "bf16-mixed"),
    (32, 5, 128, "32-true"),
    (32, 5, 160, "bf16-mixed"),
    (64, 5, 128, "bf16-mixed"),
)


def step(features: int, depth: int, patch: int, precision: str, fake: bool) -> tuple[int, int]:
    """Parameters of the network, and bytes that a forward keeps for the backward; not fake, the backward runs too."""
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with FakeTensorMode() if fake else nullcontext():
        network = RAREUNet(CHANNELS, CLASSES, features=features, depth=depth, levels=LEVELS, residual=True)
        optimizer = torch.optim.AdamW(network.parameters())
        images = {level: torch.zeros(BATCH, CHANNELS, *[patch // 2**level] * 3) for level in range(LEVELS + 1)}
        targets = {level: torch.zeros(BATCH, patch, patch, patch, dtype=torch.uint8) for level in range(LEVELS + 1)}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                prediction = network(images)
            loss = MultiResolutionLoss(consistency_weight=0)(prediction, targets, 0)["loss"]
        held = sum(storage.nbytes() for storage in kept.values())
        kept.clear()  # or the backward could not let go of them
        if not fake:
            loss.backward()
            optimizer.step()
        return sum(weight.numel() for weight in network.parameters()), held


def measured(features: int, depth: int, patch: int, precision: str) -> float:
    """GiB by which a step makes this process grow."""
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    step(features, depth, patch, precision, fake=False)
    done.set()
    watcher.join()
    return (peak - before) / 2**30


def main() -> None:
    """Count, print and save."""
    args = arguments(__doc__)
    rows = []
    for configuration in CONFIGURATIONS:
        parameters, kept = step(*configuration, fake=True)
        features, depth, patch, precision = configuration
        counted = (16 * parameters + kept) / 2**30
        rows.append(
            {
                "features": str(features),
                "depth": str(depth),
                "patch": block([patch] * 3),
                "precision": precision,
                "parameters (M)": f"{parameters / 1e6:.1f}",
                "kept by the forward (GiB)": f"{kept / 2**30:.2f}",
                "with weights and optimizer (GiB)": f"{counted:.2f}",
                "measured on the CPU (GiB)": "" if rows else f"{measured(*configuration):.2f}",
            }
        )
    save(args, "Memory of a training step", f"batch of {BATCH}, {CHANNELS} channels, {CLASSES} classes, 4 levels", rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
