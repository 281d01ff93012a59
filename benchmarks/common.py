"""What the benchmarks share: arguments, tables and records."""

import argparse
import json
from pathlib import Path
from typing import Any

from rare_lightning.configuration import read_checkpoint
from rare_lightning.provenance import describe_process


def arguments(description: str | None, **defaults: Any) -> argparse.Namespace:
    """Parse an option for each default, a switch for False, and ``--output``, a JSON file to write."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    for name, value in defaults.items():
        if isinstance(value, bool):
            parser.add_argument(f"--{name}", action="store_true")
            continue
        many = {"nargs": "+", "type": type(value[0])} if isinstance(value, list) else {"type": type(value)}
        parser.add_argument(f"--{name}", default=value, **many)
    parser.add_argument("--output", type=Path, help="JSON file for benchmarks/write_results.py")
    return parser.parse_args()


def block(size: list[int]) -> str:
    """``[48, 64, 48]`` -> ``48x64x48``."""
    return "x".join(map(str, size))


def training_record(checkpoint: str | Path) -> dict[str, Any]:
    """What a checkpoint keeps of its training."""
    record: dict[str, Any] = read_checkpoint(checkpoint)["callbacks"]["TrainingRecord"]
    return record


def save(args: argparse.Namespace, title: str, note: str, rows: list[dict[str, str]]) -> None:
    """Write what was measured, and where, to ``args.output`` if given."""
    if args.output is not None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        record = {"title": title, "note": note, "rows": rows, "process": describe_process()}
        args.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
