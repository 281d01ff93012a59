"""Checkpoint files that a crash, a full disk or a kill leaves whole."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from rare_lightning.configuration import Change, read_checkpoint
from rare_lightning.errors import UserError
from rare_lightning.files import replacing

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the checkpoint's place and renames; keeps the file that ``last.ckpt`` was before.

    Lightning's own writes into the system's temporary folder and moves, which between file systems is a copy.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write all of a checkpoint, or nothing.

        Raises:
            UserError: If it cannot be written; a checkpoint that was there is there still.
        """
        target = Path(path)
        content = io.BytesIO()
        torch.save(checkpoint, content)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as part:
                with part.open("wb") as file:
                    file.write(content.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                if target.name == LAST and target.exists():
                    target.replace(target.with_name(PREVIOUS))
        except OSError as error:
            raise UserError(
                f"{target}: cannot be written ({error.strerror}). The checkpoints before it are whole: make room, and "
                "go on with the same command and --resume."
            ) from error

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint whose run may have been moved: the files that it names are those beside it."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        here = os.path.realpath(Path(path).parent)  # as Lightning's own dirpath is
        for state in checkpoint.get("callbacks", {}).values():
            if "best_k_models" in state:  # Lightning would forget the best score, and save what is worse as the best
                before, state["dirpath"] = state["dirpath"], here
                for name in ("best_model_path", "kth_best_model_path", "last_model_path"):
                    state[name] = state[name].replace(before, here)
                state["best_k_models"] = {k.replace(before, here): v for k, v in state["best_k_models"].items()}
        return checkpoint


def find_last(folder: Path) -> Path | None:
    """The newest checkpoint of a run that can be read, None if it has none; says so if it is not the newest of all.

    Args:
        folder: Of the run.

    Raises:
        UserError: If there are some and none can be read.
    """
    problems = []
    for name in (LAST, PREVIOUS):
        path = folder / "checkpoints" / name
        if not path.exists():
            continue
        try:
            read_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            rank_zero_info(f"{problem}. Going on from {path}, the one before.")
        return path
    if problems:
        raise UserError(f"{'; '.join(problems)}. Nothing to go on from: choose another --run_dir to start anew.")
    return None


def follow_optimizer(checkpoint: dict[str, Any], changes: Sequence[Change]) -> None:
    """Have the states of a checkpoint's optimizer and schedule follow changed settings, which they would overrule.

    Args:
        checkpoint: Whose states are changed.
        changes: Settings of the optimizer.

    Raises:
        UserError: If it is another optimizer, or one that learnt at a rate of 0.
    """
    for change in changes:
        name = change.name.removeprefix("init_args.")
        if name == "class_path" or (name == "lr" and not change.before):
            raise UserError(f"the optimizer's {change}, with which its state cannot go on. Begin a new run.")
        groups = [group for state in checkpoint["optimizer_states"] for group in state["param_groups"]]
        if name != "lr":
            for group in groups:
                group[name] = change.now
            continue
        factor = change.now / change.before
        for group in groups:
            for rate in group.keys() & {"lr", "initial_lr", "max_lr", "min_lr"}:
                group[rate] *= factor
        for state in checkpoint["lr_schedulers"]:
            for rates in state.keys() & {"base_lrs", "_last_lr"}:
                state[rates] = [rate * factor for rate in state[rates]]
