"""Keeps in every checkpoint how it came about."""

import time
from pathlib import Path
from statistics import median
from typing import Any

import lightning as L

from rare_lightning.data.datamodule import Batch
from rare_lightning.provenance import cpu_minutes, describe_process, peak_memory_gib


class TrainingRecord(L.Callback):
    """Puts command, seed, commit, hardware, duration and memory into checkpoints, for the reports made from them.

    ``minutes`` is wall time, ``cpu_minutes`` the processor time of the process and its loaders. ``step_seconds`` is the
    median time of a training step without the wait for its data, ``peak_memory_gib`` the most memory that the process
    held (that its tensors held, on a GPU), validation included. ``processes`` are those that share a step.
    ``init_from`` are the weights that the training began from, with the cases that they were trained or validated on.

    Attributes:
        record: Of the training that made the loaded checkpoint, or goes on; empty before either.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self._earlier_minutes = 0.0
        self._earlier_cpu_minutes = 0.0
        self._started: float | None = None
        self._step_started = 0.0
        self._step_seconds: list[float] = []

    @classmethod
    def of(cls, trainer: L.Trainer) -> "TrainingRecord | None":
        """The one among a Trainer's callbacks, if there is one."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # defined, but not annotated
        return next((callback for callback in callbacks if isinstance(callback, cls)), None)

    def begins_from(self, weights: str, checkpoint: dict[str, Any]) -> list[str]:
        """Remember what a training begins from, and the cases that those weights know, from their own beginnings on.

        Returns:
            The cases.
        """
        split = checkpoint["DecathlonDataModule"]["split"]
        before = checkpoint.get("callbacks", {}).get("TrainingRecord", {}).get("init_from", {})
        known = sorted({*split["train"], *split["val"], *before.get("cases", ())})
        self.record = {"init_from": {"weights": Path(weights).name, "cases": known}}
        return known

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run adds to the minutes it had."""
        self._earlier_minutes = self.record.get("minutes", 0.0)
        self._earlier_cpu_minutes = self.record.get("cpu_minutes", 0.0) - cpu_minutes()
        self._started = time.monotonic()
        kept = {k: v for k, v in self.record.items() if k == "init_from"}
        self.record = describe_process() | kept | {"processes": trainer.world_size}

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Count epochs, the running one included, and start the step's clock."""
        self.record["epochs"] = trainer.current_epoch + 1
        self._step_started = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Stop the step's clock."""
        self._step_seconds.append(time.monotonic() - self._step_started)

    def state_dict(self) -> dict[str, Any]:
        """The record, with what was measured up to now."""
        if self._started is not None:
            self.record["peak_memory_gib"] = peak_memory_gib()
            self.record["cpu_minutes"] = self._earlier_cpu_minutes + cpu_minutes()
            self.record["minutes"] = self._earlier_minutes + (time.monotonic() - self._started) / 60
        if self._step_seconds:
            self.record["step_seconds"] = median(self._step_seconds)
        return dict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the record of a checkpoint."""
        self.record = dict(state_dict)
