"""Shows slices of the same validation cases as training goes on, in loggers that can show pictures."""

from typing import Any

import lightning as L

from rare_lightning.data.datamodule import Batch
from rare_lightning.evaluation.slices import Slice, cut_slice
from rare_lightning.module import SegmentationModule
from rare_lightning.networks.grids import level_spacing


class ValidationSlices(L.Callback):
    """Gives ``log_slices`` of every logger that has one a slice per level of the first validation cases.

    Args:
        every_n_epochs: Epochs from one showing to the next, which is at a validation.
        cases: How many cases, the same each time with the same number of processes; 0 for none.

    Raises:
        ValueError: If every_n_epochs is not positive, or cases is negative.
    """

    def __init__(self, every_n_epochs: int = 5, cases: int = 2) -> None:
        if every_n_epochs < 1 or cases < 0:
            raise ValueError(f"every_n_epochs ({every_n_epochs}) must be 1 or more, and cases ({cases}) 0 or more")
        self.every_n_epochs = every_n_epochs
        self.cases = cases
        self.slices: dict[str, list[Slice]] = {}
        self._shown: int | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Cut the slices while the case is there: the first of the first process, in order of their ids."""
        if batch_idx >= self.cases or not trainer.is_global_zero or not self._is_due(trainer):
            return
        assert isinstance(pl_module, SegmentationModule)
        base_spacing = batch["spacing"][0]
        pieces = []
        for level in sorted(batch["image"]):
            image, truths, predictions = pl_module.predict_first_case(batch, level)
            spacing = level_spacing(base_spacing, pl_module.network.level_stride(level))
            of_labels = level_spacing(base_spacing, batch["label"].finest_stride)
            pieces.append(cut_slice(level, spacing, image, truths["fine"], predictions["fine"], of_labels))
        self.slices[batch["case"][0]] = pieces

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show them."""
        if not self.slices:
            return
        for logger in _showing(trainer):
            logger.log_slices("val/slices", self.slices, pl_module.class_names, trainer.global_step)
        self.slices, self._shown = {}, trainer.current_epoch

    def _is_due(self, trainer: L.Trainer) -> bool:
        waited = self._shown is None or trainer.current_epoch - self._shown >= self.every_n_epochs
        return waited and not trainer.sanity_checking and bool(_showing(trainer))


def _showing(trainer: L.Trainer) -> list[Any]:
    return [logger for logger in trainer.loggers if hasattr(logger, "log_slices")]
