"""Put a trained model into the package, test it as it is there, and write the figures of its card.

python benchmarks/release_model.py --checkpoint runs/hippocampus/checkpoints/best.ckpt --name hippocampus
    --root Task04_Hippocampus

Kept are the weights, in half precision, and what prediction and tests need to know; not optimizer, paths or loops. The
figures go into docs/models/NAME.md, between two comments, and with the pictures into docs/results/model-NAME.
"""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from common import arguments, dice_with_intervals, rare
from rare_lightning.configuration import read_checkpoint
from rare_lightning.evaluation.tables import describe_summary, markdown_table, read_cases
from rare_lightning.models import FOLDER

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures: written by benchmarks/release_model.py -->", "<!-- end of figures -->"


def released(checkpoint: dict[str, Any], card: dict[str, Any]) -> dict[str, Any]:
    """What is shipped of a checkpoint."""
    state = {name: w.half() if w.is_floating_point() else w for name, w in checkpoint["state_dict"].items()}
    data = {**checkpoint["datamodule_hyper_parameters"], "cache_dir": None, "splits_file": None}
    data["root"] = Path(data["root"]).name
    kept = ("hyper_parameters", "datamodule_hyper_parameters", "DecathlonDataModule", "datamodule_hparams_name")
    kept += ("hparams_name", "datamodule_init_args", "pytorch-lightning_version", "epoch", "global_step")
    records = {name: state for name, state in checkpoint["callbacks"].items() if name == "TrainingRecord"}
    return {
        **{name: checkpoint[name] for name in kept if name in checkpoint},
        "state_dict": state,
        "datamodule_hyper_parameters": data,
        "callbacks": records,
        "card": card,
    }


def main() -> None:
    """Write, test, and write again with the figures."""
    args = arguments(__doc__, checkpoint="", name="", root="", licence="CC-BY-SA 4.0")
    target = FOLDER / f"{args.name}.ckpt"
    checkpoint = read_checkpoint(args.checkpoint)
    torch.save(released(checkpoint, {"licence": args.licence, "dice": {}}), target)
    with tempfile.TemporaryDirectory() as run:
        words = ["test", "--ckpt_path", args.name, "--data.root", args.root, "--run_dir", run]
        rare(words)
        test = Path(run) / "test"
        summary = json.loads((test / "summary.json").read_text(encoding="utf-8"))
        lines, dice = dice_with_intervals(read_cases(test / "cases.csv"))
        record = DOCS / "results" / f"model-{args.name}"
        record.mkdir(exist_ok=True)
        for name in ("summary.json", "dice_by_resolution.png", "montage.png"):
            shutil.copy(test / name, record / name)
    torch.save(released(checkpoint, {"licence": args.licence, "dice": dice}), target)
    card = DOCS / "models" / f"{args.name}.md"
    before, _, rest = card.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{describe_summary(summary)}.\n\n    {summary['training']['command']}\n\n"
    text += f"Dice on {summary['cases']} cases it never saw, with 95 % intervals over cases:\n\n{markdown_table(lines)}"
    card.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB; figures in {card}")


if __name__ == "__main__":
    main()
