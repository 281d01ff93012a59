"""Checkpoint files that a crash, a full disk or a kill leaves whole."""

import io
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info

from rare_lightning.configuration import read_checkpoint
from rare_lightning.errors import UserError
from rare_lightning.files import replacing

LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
FOLDER = "folder"
"""Where a checkpoint says which folder it was saved in."""


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
        checkpoint[FOLDER] = os.path.realpath(target.parent)  # as Lightning's own dirpath is
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
        """Read a checkpoint whose run may have been moved: of the files that it names, those beside it moved too."""
        checkpoint: dict[str, Any] = super().load_checkpoint(path, *args, **kwargs)
        here = os.path.realpath(Path(path).parent)
        for state in checkpoint.get("callbacks", {}).values():
            before = state.get("dirpath")
            if "best_k_models" in state and before == checkpoint.get(FOLDER, before):  # a plain Trainer's do not say
                # Lightning would forget the best score, and save what is worse as the best.
                state["dirpath"] = here
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
