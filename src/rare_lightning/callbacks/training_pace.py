"""Logs how fast training goes and learns."""

import time
from typing import Any

import lightning as L

from rare_lightning.data.datamodule import Batch


class TrainingPace(L.Callback):
    """Logs ``train/learning_rate`` by step, and ``train/patches_per_second`` of all processes by epoch.

    The wait for data counts, validation does not.
    """

    def __init__(self) -> None:
        self._patches, self._seconds, self._since = 0, 0.0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock: of an epoch that is resumed in its middle, Lightning skips the next hook."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._patches, self._seconds, self._since = 0, 0.0, time.monotonic()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Log the rate that this step learns with."""
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        pl_module.log("train/learning_rate", rate, on_step=True, on_epoch=False)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the step's patches, and its time with the wait for its data."""
        now = time.monotonic()
        self._patches += len(batch["case"])
        self._seconds += now - self._since
        self._since = now

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave a validation in the middle of an epoch out."""
        self._since = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log patches per second, as the first process sees it: in step, all are as fast as the slowest."""
        pace = trainer.world_size * self._patches / max(self._seconds, 1e-9)
        # Not sync_dist: the progress bar of the first process would wait here for the others.
        pl_module.log("train/patches_per_second", pace, rank_zero_only=True)
