"""Train and compare every method on a Decathlon task, each for the same time.

make comparison ROOT=Task04_Hippocampus MINUTES=30
python benchmarks/comparison.py --root Task04_Hippocampus --minutes 30 --output runs/comparison

How many epochs of a method fit into the minutes is estimated from a short run of its own first, and kept, so that its
learning rate can follow the whole run. Started again, it goes on where it stopped and skips what is done. Words after
``--`` go to every ``rare fit``, for example ``-- --model.network.init_args.features 8``.

Methods are trained and compared at exactly the spacings of the levels. The paper's network and objective (level-grid
heads, consistency loss, labels sampled at the corner of each block) are trained too; ``corner/`` holds the same
comparison against such labels. nnU-Net v2 itself joins where ``make nnunet-env`` has installed it, with its scans at
their own resolution and brought up.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

from common import rare, training_record

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


def epochs_within(minutes: float, fit: Sequence[str], folder: Path) -> int:
    """Epochs of a method, validation included, that take the minutes; measured once and kept."""
    kept = folder / "minutes_per_epoch.json"
    if not kept.exists():
        shutil.rmtree(folder, ignore_errors=True)
        rare([*fit, "--run_dir", str(folder), *lasting(VALIDATE_EVERY)])
        measured = training_record(folder / "checkpoints" / "last.ckpt")["minutes"]
        kept.write_text(json.dumps(measured / VALIDATE_EVERY), encoding="utf-8")
    return max(1, round(minutes / float(json.loads(kept.read_text(encoding="utf-8")))))


def lasting(epochs: int) -> list[str]:
    """Words for a run of so many epochs, one of which at least is validated: there is to be a best."""
    every = min(VALIDATE_EVERY, epochs)
    return ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(every)]


def train(method: str, args: argparse.Namespace) -> Path:
    """Train a method, or go on with it. Returns its best checkpoint."""
    folder: Path = args.output / method
    fit = ["fit", "--config", args.config, *METHODS[method], "--data.root", args.root, *EXACT, *args.words]
    fit += ["--trainer.enable_progress_bar", "false"]
    epochs = epochs_within(args.minutes, fit, args.output / "calibration" / method)
    rare([*fit, "--run_dir", str(folder), *lasting(epochs), "--resume"])
    return folder / "checkpoints" / "best.ckpt"


def run_nnunet(args: argparse.Namespace) -> list[str]:
    """nnU-Net v2 itself, on the split of the first method, where it is installed. Returns its runs to compare."""
    if not args.nnunet_environment.is_dir():
        print(f"\nWithout nnU-Net v2: {args.nnunet_environment} is missing, which make nnunet-env makes")
        return []
    folder = args.output / "nnunet-v2"
    first = args.output / args.methods[0]
    data = yaml.safe_load((first / "config.yaml").read_text(encoding="utf-8"))["data"]
    same = [f"--{name}={json.dumps(data[name])}" for name in ("levels", "depth", "strides", "spacing")]
    words = ["nnunet", "--root", args.root, "--output", str(folder), *same]
    words += ["--environment", str(args.nnunet_environment)]
    words += ["--splits_file", str(first / "splits.json"), "--minutes", str(args.minutes), "--mirror", "false"]
    rare(words + (["--iterations", str(args.nnunet_iterations)] if args.nnunet_iterations else []))
    return [f"nnunet-v2-{route}={folder / route}" for route in ("native", "upsampled")]


def main() -> None:
    """Train what is not trained, test what is not tested, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of the Decathlon task")
    parser.add_argument("--config", default="configs/hippocampus.yaml", help="run to compare the methods in")
    parser.add_argument("--minutes", type=float, default=30, help="of training, for each method")
    parser.add_argument("--output", type=Path, default=Path("runs/comparison"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--nnunet_environment", type=Path, default=Path(".venv-nnunet"))
    parser.add_argument("--nnunet_iterations", type=int, help="of an nnU-Net epoch; few where one takes seconds")
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
            rare(["test", "--ckpt_path", str(best), *words])
    others = {"majority": run_nnunet(args), "corner": []}
    for labels, folder in folders.items():
        runs = [*(str(folder / method) for method in args.methods), *others[labels]]
        rare(["compare", *runs, "--output", str(folder / "comparison")])


if __name__ == "__main__":
    main()
