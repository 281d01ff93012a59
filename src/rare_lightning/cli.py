"""The ``rare`` command: what there is, and which of it is meant."""

import sys
from collections.abc import Sequence

from rare_lightning import __version__

COMMANDS = {
    "fit": "Train a network: rare fit --config configs/hippocampus.yaml --data.root ROOT",
    "validate": "Score a checkpoint on its validation cases: rare validate --ckpt_path CHECKPOINT",
    "test": "Score a checkpoint on its test cases and write the report: rare test --ckpt_path CHECKPOINT",
    "models": "List the trained models that come with the package: rare models",
    "predict": "Segment scans: rare predict --ckpt_path CHECKPOINT --input SCAN_OR_FOLDER ... --output FOLDER",
    "export": "Write a network for another engine: rare export --ckpt_path CHECKPOINT --format onnx --output FOLDER",
    "benchmark": "Time every stage of prediction: rare benchmark --ckpt_path CHECKPOINT --output FOLDER",
    "evaluate": "Score label maps of any tool: rare evaluate --predictions FOLDER --labels FOLDER --output FOLDER",
    "compare": "Lay tests beside each other, with intervals and paired tests: rare compare RUN... --output FOLDER",
    "data download": "Download a Decathlon task: rare data download hippocampus --root FOLDER",
    "data check": "List every problem of a task: rare data check ROOT",
    "phantom": "Write a synthetic Decathlon task: rare phantom ROOT",
    "nnunet": "Train nnU-Net on the same cases and score it alike: rare nnunet --root ROOT --output FOLDER",
    "dashboard": "Lay out runs on Weights & Biases: rare dashboard --entity ENTITY --project PROJECT",
}

OVERVIEW = """usage: rare COMMAND ...

Resolution-aware 3D medical image segmentation.

commands:
{}

rare COMMAND --help lists the options of a command.""".format(
    "\n".join(f"  {name:<15}{purpose}" for name, purpose in COMMANDS.items())
)


def main(args: Sequence[str] | None = None) -> int:
    """Run ``rare``; returns the exit code.

    Args:
        args: Command line arguments; those of the process if None.
    """
    words = sys.argv[1:] if args is None else list(args)
    if not words or words[0] in ("-h", "--help"):
        print(OVERVIEW)
        return 0 if words else 2
    if words[0] == "--version":
        print(f"rare-lightning {__version__}")
        return 0
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is None:
        within = [f"rare {command}" for command in COMMANDS if command.startswith(f"{words[0]} ")]
        if within and words[1:] in (["-h"], ["--help"]):
            print(f"commands: {', '.join(within)}")
            return 0
        asked = " ".join(words[:2]) if within else words[0]
        commands = ", ".join(within or COMMANDS)
        print(f"rare: error: there is no command {asked!r}. Commands: {commands}", file=sys.stderr)
        return 1
    # PyTorch and Lightning take seconds to import, which help need not wait.
    from rare_lightning.commands.run import run

    return run(name, COMMANDS[name], words)


if __name__ == "__main__":
    sys.exit(main())
