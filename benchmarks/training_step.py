"""Time and memory of a training step: one sweep over all levels, against one level at a time and a plain U-Net.

python benchmarks/training_step.py [--output docs/results/training_step.json]
"""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

from common import arguments, block, save
from rare_lightning.evaluation.tables import markdown_table
from rare_lightning.inference.forward_times import interleaved
from rare_lightning.networks import Prediction, Pyramid, RAREUNet, UNet
from rare_lightning.networks.grids import block_average
from rare_lightning.objectives import MultiResolutionLoss


def one_sweep(network: RAREUNet, images: Pyramid) -> Prediction:
    """The network's own forward."""
    return network(images)


def level_by_level(network: RAREUNet, images: Pyramid) -> Prediction:
    """The same answers from one forward per level; spares itself the consistency features."""
    return Prediction({level: network({level: image}).logits[level] for level, image in images.items()}, {}, {})


def make_step(network: RAREUNet, forward: Callable[..., Prediction], images: Pyramid, label: torch.Tensor) -> Callable:
    """Forward, objective, backward and optimizer step."""
    optimizer = torch.optim.AdamW(network.parameters())
    objective = MultiResolutionLoss()

    def step() -> None:
        optimizer.zero_grad()
        prediction = forward(network, images)
        objective(prediction, dict.fromkeys(images, label), 1)["loss"].backward()
        optimizer.step()

    return step


def peak_bytes(step: Callable[[], None]) -> int:
    """Most memory that the step's tensors held at once, beside what was there before (CPU allocator events)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, size=[48, 64, 48], batch=2, features=8, depth=4, levels=3, repeats=15)
    torch.manual_seed(0)
    rare = RAREUNet(1, 3, args.features, args.depth, args.levels)
    unet = UNet(1, 3, args.features, args.depth, args.levels)
    base = torch.randn(args.batch, 1, *args.size)
    images = {level: block_average(base, rare.level_stride(level)) for level in rare.levels}
    label = torch.randint(0, 3, (args.batch, *args.size))
    steps = {
        "U-Net, level 0 alone": make_step(unet, one_sweep, {0: base}, label),
        "U-Net, all levels up-sampled": make_step(unet, one_sweep, images, label),
        "RARE-UNet, one level at a time": make_step(rare, level_by_level, images, label),
        "RARE-UNet, one sweep": make_step(rare, one_sweep, images, label),
    }
    seconds = interleaved(steps, args.repeats)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    first = next(iter(steps))
    rows = [
        {
            "step": name,
            "time": f"{seconds[name] / seconds[first]:.2f}",
            "seconds": f"{seconds[name]:.3f}",
            "peak memory": f"{memory[name] / memory[first]:.2f}",
            "MiB": f"{memory[name] / 2**20:.0f}",
        }
        for name in steps
    ]
    note = f"{args.batch} x {block(args.size)} voxels, {args.features} features, depth {args.depth}"
    note += f"; median of {args.repeats}"
    save(args, "Training step", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
