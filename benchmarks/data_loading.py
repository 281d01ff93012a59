"""Share of an epoch that training waits for data, by Lightning's profiler.

python benchmarks/data_loading.py --root Task04_Hippocampus [--output docs/results/data_loading.json]
"""

import re
import tempfile
from pathlib import Path

from common import arguments, save
from rare_lightning.cli import main as rare
from rare_lightning.evaluation.tables import markdown_table

WAITING = "[_TrainingEpochLoop].train_dataloader_next"
TRAINING = "run_training_batch"


def main() -> None:
    """Run, print and save."""
    args = arguments(__doc__, root="", config="configs/hippocampus.yaml", epochs=2, workers=1)
    with tempfile.TemporaryDirectory() as folder:
        profiler = ["--trainer.profiler", "SimpleProfiler", "--trainer.profiler.dirpath", folder]
        words = ["--config", args.config, "--data.root", args.root, "--run_dir", f"{folder}/run", *profiler]
        words += ["--trainer.profiler.filename", "profile", "--trainer.max_epochs", str(args.epochs)]
        words += [
            "--data.num_workers",
            str(args.workers),
            "--trainer.limit_val_batches",
            "0",
            "--checkpoint.monitor",
            "null",
        ]
        if rare(["fit", *words]) != 0:
            raise SystemExit(1)
        report = Path(folder, "fit-profile.txt").read_text(encoding="utf-8")
    # | action | mean seconds | calls | total seconds | percent |
    total = {
        name: float(re.search(rf"{re.escape(name)}\s*\|[^|]*\|[^|]*\|\s*([\d.]+)", report)[1])
        for name in (WAITING, TRAINING)
    }
    seconds = sum(total.values())
    rows = [
        {"of the training loop": what, "share": f"{total[name] / seconds:.1%}", "seconds": f"{total[name]:.1f}"}
        for what, name in (("waiting for data", WAITING), ("training", TRAINING))
    ]
    save(
        args, "Data loading", f"{args.config}, {args.epochs} epochs, {args.workers} worker, augmentation included", rows
    )
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
