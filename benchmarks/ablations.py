"""What parts of the hippocampus recipe are worth: short trainings that differ in one setting.

python benchmarks/ablations.py --root Task04_Hippocampus [--epochs 32] [--seeds 0] [--variants recipe AdamW ...]
    [--runs runs/ablations] [--output docs/results/ablations.json]

What is trained already is not trained again, and what was interrupted goes on. Scores are Dice of the last weights on
the validation cases, against the label at full resolution, by level, means over classes and cases. Test cases stay
unseen.
"""

import csv
from pathlib import Path
from statistics import mean
from typing import Any

from common import arguments, rare, save, training_record
from rare_lightning.evaluation.tables import markdown_table

CONFIGS = Path(__file__).parents[1] / "configs"

VARIANTS = {
    "recipe": [],
    "consistency loss": [
        "--model.objective.init_args.consistency_weight=0.1",
        "--model.objective.init_args.consistency_warmup_epochs=5",
    ],
    "AdamW": [
        "--model.optimizer=torch.optim.AdamW",
        "--model.optimizer.lr=3e-3",
        "--model.optimizer.weight_decay=1e-2",
    ],
    "no short cuts": ["--model.network.init_args.residual=false"],
    "two cases a step": ["--data.batch_size=2"],
    "all levels in every batch": ["--model.level_cycle=null"],
    "full precision": ["--trainer.precision=32-true"],
    "exact spacings": ["--data.random_spacing.in_between=0", "--data.random_spacing.anisotropic=0"],
    "no augmentation": ["--data.augmentation=[]"],
    "wider deep stages": ["--model.network.init_args.features=[8,16,48,96,128]"],
    "rate doubled": ["--model.optimizer.init_args.lr=6e-3"],
    "cosine schedule": ["--model.scheduler=cosine"],
}
EPOCHS = {"all levels in every batch": 20 / 32}  # of the recipe's, that take as many minutes


def trained(variant: str, seed: int, epochs: int, root: str, folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Validation metrics of a variant's last weights, and the record of its training."""
    epochs = round(epochs * EPOCHS.get(variant, 1))
    run = folder / f"{variant.replace(' ', '-')}-{epochs}-{seed}"
    last, metrics = run / "checkpoints" / "last.ckpt", run / "logs" / "validate" / "metrics.csv"
    if not metrics.exists():
        words = ["fit", "--config", str(CONFIGS / "hippocampus.yaml"), *VARIANTS[variant], "--data.root", root]
        words += [f"--seed_everything={seed}", f"--trainer.max_epochs={epochs}", f"--run_dir={run}", "--resume"]
        words += ["--trainer.check_val_every_n_epoch", str(epochs), "--trainer.enable_progress_bar", "false"]
        rare(words)
        rare(["validate", "--ckpt_path", str(last), "--trainer.enable_progress_bar", "false"])
    with metrics.open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items() if value}, training_record(last)


def main() -> None:
    """Train, score, print and save."""
    args = arguments(__doc__, root="", epochs=32, seeds=[0], variants=list(VARIANTS), runs="runs/ablations")
    rows = []
    for variant in args.variants:
        found = [trained(variant, seed, args.epochs, args.root, Path(args.runs)) for seed in args.seeds]
        levels = sorted(name for name in found[0][0] if name.startswith("val/dice/level_") and name.count("/") == 2)
        scores = {name: [metrics[name] for metrics, _ in found] for name in [*levels, "val/dice"]}
        rows.append(
            {
                "variant": variant,
                **{name.rpartition("/")[2].replace("_", " "): f"{mean(dice):.3f}" for name, dice in scores.items()},
                "lowest to highest": f"{min(scores['val/dice']):.3f} to {max(scores['val/dice']):.3f}",
                "epochs": str(found[0][1]["epochs"]),
                "processor minutes": f"{mean(record['cpu_minutes'] for _, record in found):.1f}",
            }
        )
        print(rows[-1], flush=True)
        note = f"Variants of configs/hippocampus.yaml, seeds {', '.join(map(str, args.seeds))}"
        save(args, "Ablations", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
