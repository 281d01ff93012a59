"""Train and compare every method on a Decathlon task, each for the same time.

make comparison ROOT=Task04_Hippocampus MINUTES=30
python benchmarks/comparison.py --root Task04_Hippocampus --minutes 30 --output runs/comparison

How many epochs of a method fit into the minutes is estimated from a short run of its own first, and kept, so that its
learning rate can follow the whole run. Started again, it goes on where it stopped and skips what is done. Words after
``--`` go to every ``rare fit``, for example ``-- --model.network.init_args.features 8``.

Methods are trained and compared at exactly the spacings of the levels. The paper's own recipe (level-grid heads, labels
sampled at the corner of each block) is trained too; ``corner/`` holds the same comparison against such labels.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rare_lightning.cli import main as rare
from rare_lightning.configuration import read_checkpoint

CONFIGS = Path(__file__).parents[1] / "configs" / "network"
CORNER = ["--data.label_downsampling", "corner"]
METHODS: dict[str, list[str]] = {
    "rare-unet": [],
    "unet": ["--config", str(CONFIGS / "unet.yaml")],
    "unet-multi-resolution": ["--config", str(CONFIGS / "unet_multi_resolution.yaml")],
    "nnunet-architecture": ["--config", str(CONFIGS / "nnunet.yaml")],
    "rare-unet-paper": ["--config", str(CONFIGS / "rare_unet_paper.yaml"), *CORNER],
}
EXACT = ["--data.random_spacing.in_between", "0", "--data.random_spacing.anisotropic", "0"]
VALIDATE_EVERY = 3  # epochs


def run(words: Sequence[str]) -> None:
    """``rare`` in this process; stops the script where it fails."""
    print(f"\n$ rare {' '.join(words)}", flush=True)
    if code := rare(words):
        sys.exit(code)


def epochs_within(minutes: float, fit: Sequence[str], folder: Path) -> int:
    """Epochs of a method, validation included, that take the minutes; measured once and kept."""
    kept = folder / "minutes_per_epoch.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        run([*fit, "--run_dir", str(folder), "--trainer.max_epochs", str(VALIDATE_EVERY)])
        callbacks = read_checkpoint(folder / "checkpoints" / "last.ckpt")["callbacks"]
        measured = next(state for name, state in callbacks.items() if name.startswith("TrainingRecord"))["minutes"]
        kept.write_text(json.dumps(measured / VALIDATE_EVERY), encoding="utf-8")
    return max(1, round(minutes / float(json.loads(kept.read_text(encoding="utf-8")))))


def train(method: str, args: argparse.Namespace) -> Path:
    """Train a method, or go on with it. Returns its best checkpoint."""
    folder: Path = args.output / method
    fit = ["fit", "--config", args.config, *METHODS[method], "--data.root", args.root, *EXACT, *args.words]
    fit += ["--trainer.check_val_every_n_epoch", str(VALIDATE_EVERY), "--trainer.enable_progress_bar", "false"]
    epochs = epochs_within(args.minutes, fit, args.output / "calibration" / method)
    fit += ["--run_dir", str(folder), "--trainer.max_epochs", str(epochs)]
    last = folder / "checkpoints" / "last.ckpt"
    if last.exists():
        fit += ["--ckpt_path", str(last)]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # stopped before its first epoch was done
    run(fit)
    return folder / "checkpoints" / "best.ckpt"


def main() -> None:
    """Train what is not trained, test what is not tested, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the Decathlon task")
    parser.add_argument("--config", default="configs/hippocampus.yaml", help="run to compare the methods in")
    parser.add_argument("--minutes", type=float, default=30, help="of training, for each method")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("words", nargs="*", help="after --, for every rare fit")
    args = parser.parse_args()
    folders = {"majority": args.output, "corner": args.output / "corner"}
    for method in args.methods:
        untested = {
            labels: folder / method
            for labels, folder in folders.items()
            if not (folder / method / "test" / "summary.json").exists()
        }
        best = train(method, args) if untested else None
        for labels, folder in untested.items():
            words = ["--data.label_downsampling", labels, "--run_dir", str(folder)]
            run(["test", "--ckpt_path", str(best), *words])
    for folder in folders.values():
        runs = [str(folder / method) for method in args.methods]
        run(["compare", *runs, "--output", str(folder / "comparison")])


if __name__ == "__main__":
    main()
