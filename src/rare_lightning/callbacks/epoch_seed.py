"""Makes what the network draws, such as dropout, follow from seed, epoch and process."""

import lightning as L
import torch

from rare_lightning.data.sampling import seed_of
from rare_lightning.provenance import run_seed


class EpochSeed(L.Callback):
    """Seeds torch at the start of each epoch, so that a run that was interrupted draws what it would have drawn."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed what is left of an epoch that is resumed in its middle, for which Lightning skips the next hook."""
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Seed all devices of this process."""
        torch.manual_seed(seed_of(run_seed() or 0, trainer.current_epoch, trainer.global_rank))
