"""What beginning from a trained model is worth where cases are few.

python benchmarks/fine_tuning.py --root Task04_Hippocampus [--epochs 40] [--seeds 0] [--folds 10] [--runs RUNS]
    [--config configs/hippocampus.yaml] [--output docs/results/fine-tuning.json]

A quarter of the training cases has the task's labels. The other three quarters have coarser ones, all classes as one,
as public data often has: a model trained on those is what the fine-tuning begins from, and its heads are made anew.
Beside it, the same network is trained on the quarter from scratch, for as many steps. Both are tested on the same
cases, which none of the three saw.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from common import arguments, line_of_run, save, shuffled_split, train_and_test, training_record, write_splits
from rare_lightning.data.splits import Split
from rare_lightning.data.task import read_task
from rare_lightning.evaluation.tables import markdown_table


def write_merged(root: Path, target: Path) -> None:
    """The task at root with all foreground classes as one; its images are linked."""
    content = json.loads((root / "dataset.json").read_text(encoding="utf-8"))
    content["labels"] = {"0": "background", "1": "foreground"}
    shutil.rmtree(target, ignore_errors=True)  # of a script that was stopped here
    (target / "labelsTr").mkdir(parents=True)
    (target / "imagesTr").symlink_to((root / "imagesTr").resolve())
    for case in read_task(root).cases:
        label = nib.load(case.label)
        merged = (np.asanyarray(label.dataobj) > 0).astype(np.uint8)
        nib.save(nib.Nifti1Image(merged, label.affine, label.header), target / "labelsTr" / case.label.name)
    (target / "dataset.json").write_text(json.dumps(content), encoding="utf-8")


def quarter_and_rest(split: Split, order: Sequence[str]) -> list[dict[str, Sequence[str]]]:
    """Fold 0 trains on a quarter of the training cases, the first of them in this order, and fold 1 on the others."""
    quarter = max(1, len(order) // 4)
    return [{**split.as_dict(), "train": sorted(cases)} for cases in (order[:quarter], order[quarter:])]


def main() -> None:
    """Train, test, print and save."""
    options = {"root": "", "config": "configs/hippocampus.yaml", "runs": "runs/fine-tuning"}
    args = arguments(__doc__, **options, epochs=40, seeds=[0], folds=10)
    runs = Path(args.runs)
    splits = runs / "splits.json"
    write_splits(quarter_and_rest(*shuffled_split(args.root, args.folds)), splits)
    if not (runs / "merged" / "dataset.json").exists():
        write_merged(Path(args.root), runs / "merged")

    def train(name: str, seed: int, fold: int, *words: str, root: str = args.root) -> Path:
        run = runs / f"{name}-{seed}"
        fit = ["--config", args.config, "--data.root", root, "--data.splits_file", str(splits)]
        fit += ["--data.fold", str(fold), "--seed_everything", str(seed)]
        train_and_test(run, [*fit, *words])
        return run

    epochs = ["--trainer.max_epochs", str(args.epochs)]
    rows = []
    for seed in args.seeds:
        coarse = train("coarse-labels", seed, 1, root=str(runs / "merged"))
        begin = ["--model.init_from", str(coarse / "checkpoints" / "last.ckpt")]
        for name, run in {
            "from scratch": train("scratch", seed, 0, *epochs),
            "fine-tuned": train("fine-tuned", seed, 0, *epochs, *begin),
        }.items():
            rows.append({"training": name, "seed": str(seed), **line_of_run(run)})
    note = "A quarter of the training cases; Dice against the `fine` truth on the test cases, 95 % intervals over cases"
    note += f"; trained at commit {training_record(run / 'checkpoints' / 'last.ckpt')['commit']}"
    save(args, "Fine-tuning", note, rows)
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
