"""Keeps in every checkpoint how it came about."""

import time
from typing import Any

import lightning as L

from rare_lightning.provenance import describe_process


class TrainingRecord(L.Callback):
    """Puts command, seed, commit, hardware, epochs and minutes into checkpoints, for the reports made from them.

    Attributes:
        record: Of the training that made the loaded checkpoint, or goes on; empty before either.
    """

    def __init__(self) -> None:
        self.record: dict[str, Any] = {}
        self._earlier_minutes = 0.0
        self._started: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock; a resumed run adds to the minutes it had."""
        self._earlier_minutes = self.record.get("minutes", 0.0)
        self._started = time.monotonic()
        self.record = describe_process()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count epochs, the running one included."""
        self.record["epochs"] = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """The record, with the minutes up to now."""
        if self._started is not None:
            self.record["minutes"] = self._earlier_minutes + (time.monotonic() - self._started) / 60
        return dict(self.record)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the record of a checkpoint."""
        self.record = dict(state_dict)
