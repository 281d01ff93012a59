"""Where the time of a training epoch goes, by precision and order of channels in memory, by Lightning's profiler.

python benchmarks/epoch.py --root Task04_Hippocampus [--output docs/results/epoch.json]
"""

import re
import tempfile
from pathlib import Path

from common import arguments, rare, save
from rare_lightning.evaluation.tables import markdown_table


def profiled(words: list[str]) -> dict[str, float]:
    """Seconds of each part of the training that the words describe."""
    with tempfile.TemporaryDirectory() as folder:
        profiler = ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.dirpath", folder]
        profiler += ["--trainer.profiler.filename", "profile"]
        rare(["fit", *words, "--run_dir", f"{folder}/run", *profiler])
        report = Path(folder, "fit-profile.txt").read_text(encoding="utf-8")

    def total(name: str) -> float:
        # | action | mean seconds | calls | total seconds | percent |
        found = re.search(rf"\|\s*{re.escape(name)}\s*\|[^|]*\|[^|]*\|\s*([\d.]+)", report)
        if found is None:
            raise SystemExit(f"the profiler's report has no {name}")
        return float(found[1])

    waiting = total("[_TrainingEpochLoop].train_dataloader_next")
    forward = total("[Strategy]SingleDeviceStrategy.training_step")
    backward = total("[Strategy]SingleDeviceStrategy.backward")
    # The optimizer's step is handed the two as a closure.
    optimizer = total("[LightningModule]SegmentationModule.optimizer_step") - forward - backward
    epoch = total("run_training_epoch")
    return {
        "waiting for data": waiting,
        "forward, loss and Dice": forward,
        "backward": backward,
        "clipping and optimizer": optimizer,
        "logging and checkpoints": epoch - waiting - forward - backward - optimizer,
        "epoch": epoch,
    }


def main() -> None:
    """Run, print and save."""
    variants = {
        f"{precision}, channels {order}": ["--trainer.precision", precision, "--model.channels_last", last]
        for precision in ("32-true", "bf16-mixed")
        for order, last in (("first", "false"), ("last", "true"))
    }
    args = arguments(__doc__, root="", config="configs/hippocampus.yaml", epochs=1)
    words = ["--config", args.config, "--data.root", args.root, "--trainer.max_epochs", str(args.epochs)]
    words += ["--trainer.limit_val_batches", "0", "--checkpoint.monitor", "null", "--trainer.accelerator", "cpu"]
    words += ["--trainer.enable_progress_bar", "false"]
    seconds = {variant: profiled([*words, *more]) for variant, more in variants.items()}
    reference = next(iter(seconds.values()))
    rows = [
        {"part": part} | {variant: f"{parts[part] / reference['epoch']:.3f}" for variant, parts in seconds.items()}
        for part in reference
    ]
    first = f"1 = {reference['epoch'] / args.epochs:.1f} s"
    note = f"{Path(args.config).name}, epochs: {args.epochs}, with augmentation, without validation; {first}"
    save(args, "Epoch", note, rows)
    print(markdown_table(rows), first)


if __name__ == "__main__":
    main()
