"""Tests of the same recipe with several seeds: means, and how far they lie apart.

python benchmarks/seeds.py --runs runs/seed-0 runs/seed-1 runs/seed-2 [--output docs/results/seeds.json]
"""

import json
from pathlib import Path
from statistics import mean

from common import arguments, save, training_record
from rare_lightning.evaluation.protocol import TRUTHS
from rare_lightning.evaluation.tables import markdown_table


def main() -> None:
    """Read, print and save."""
    args = arguments(__doc__, runs=["runs/seed-0"], title="Seeds")
    tests = [json.loads(Path(run, "test", "summary.json").read_text(encoding="utf-8")) for run in args.runs]
    rows = []
    for truth in TRUTHS:
        scores = {
            f"level {level}": [test[truth]["levels"][level]["mean"]["dice"] for test in tests]
            for level in tests[0][truth]["levels"]
        }
        scores["mean"] = [test[truth]["mean"]["dice"] for test in tests]
        rows.append(
            {"Dice against": f"`{truth}`"}
            | {name: f"{mean(found):.3f}" for name, found in scores.items()}
            | {"lowest to highest mean": f"{min(scores['mean']):.3f} to {max(scores['mean']):.3f}"}
        )
    training = [training_record(Path(run, "checkpoints", "last.ckpt")) for run in args.runs]
    if len({record["commit"] for record in training}) > 1:
        raise SystemExit(f"trained at different commits: {', '.join(record['commit'] for record in training)}")
    note = f"{tests[0]['cases']} test cases, seeds {', '.join(str(record['seed']) for record in training)}, "
    note += f"{mean(record['cpu_minutes'] for record in training):.1f} processor minutes each, "
    note += f"{max(record['minutes'] for record in training):.1f} or less by the clock; "
    note += f"trained at commit {training[0]['commit']}, last with {training[-1]['command']}"
    save(args, args.title, note, rows)
    print(markdown_table(rows), note)


if __name__ == "__main__":
    main()
