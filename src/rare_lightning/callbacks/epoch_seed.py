"""Makes what the network draws, such as dropout, follow from seed, epoch and process."""

import os

import lightning as L
import torch

EPOCHS = 1_000_000  # more than any run has; keeps the processes' numbers apart


class EpochSeed(L.Callback):
    """Seeds torch at the start of each epoch, so that a run that was interrupted draws what it would have drawn."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed the first epoch of a run that goes on, which Lightning begins without :meth:`on_train_epoch_start`."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed all devices of this process."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        torch.manual_seed(seed + trainer.current_epoch + EPOCHS * trainer.global_rank)
