"""Segmenting many scans through Lightning's Trainer: what is read, and what is run."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rare_lightning.data.scans import Scan, ScanFiles, read_scan
from rare_lightning.data.voxels import reason
from rare_lightning.errors import UserError
from rare_lightning.inference.segmenter import Prepared, Segmentation, Segmenter
from rare_lightning.processes import end_with_parent

OUT_OF_MEMORY = "ran out of memory: lower --memory for smaller windows, or enter at a deeper --level"


@dataclass(frozen=True)
class ReadScan:
    """A scan that was read, or the reason why not.

    Attributes:
        files: Where it lies.
        scan: Its voxels along the file's axes.
        prepared: What the network gets.
        failure: Why there is neither.
    """

    files: ScanFiles
    scan: Scan | None = None
    prepared: Prepared | None = None
    failure: str | None = None


class ScanDataset(Dataset[ReadScan]):
    """Reads and prepares scans, so that loader processes do it beside the network.

    Args:
        scans: What to read.
        segmenter: The model they are prepared for.
        level: Enter all scans here, whatever their spacing.
        keep_voxels: Hand on the scan's own voxels too, for pictures.
    """

    def __init__(
        self, scans: Sequence[ScanFiles], segmenter: Segmenter, level: int | None = None, keep_voxels: bool = False
    ) -> None:
        self.scans = list(scans)
        self.segmenter = copy(segmenter)
        self.segmenter.networks = []  # no part of preparing, and engines cannot be sent to loader processes
        self.level = level
        self.keep_voxels = keep_voxels

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> ReadScan:
        """One case; a scan that cannot be used does not stop the others."""
        files = self.scans[index]
        try:
            scan = read_scan(files)
            prepared = self.segmenter.prepare(scan, str(files.paths[0]), self.level)
            return ReadScan(files, scan if self.keep_voxels else replace(scan, array=np.empty(0)), prepared)
        except UserError as error:
            return ReadScan(files, failure=str(error))
        except (MemoryError, RuntimeError) as error:
            return ReadScan(files, failure=f"{files.paths[0]}: {_out_of_memory(error)}")

    def loader(self, num_workers: int = 0) -> DataLoader[ReadScan]:
        """One case per batch, in order."""
        return DataLoader(
            self, batch_size=1, num_workers=num_workers, collate_fn=itemgetter(0), worker_init_fn=_end_with_parent
        )


class PredictionModule(L.LightningModule):
    """Runs a segmenter's networks on the Trainer's device.

    Args:
        segmenter: The model.
        on_base_grid: Answer at the base spacing instead of on the scan's grid.
        keep_probabilities: Answer with the probabilities too.
    """

    def __init__(self, segmenter: Segmenter, on_base_grid: bool = False, keep_probabilities: bool = False) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.on_base_grid = on_base_grid
        self.keep_probabilities = keep_probabilities
        self.networks = nn.ModuleList(segmenter.networks)  # so that Lightning moves them

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Nothing: the segmenter moves what its network needs."""
        return batch

    def on_predict_batch_start(self, batch: ReadScan, batch_idx: int, dataloader_idx: int = 0) -> None:
        """End when asked to by a signal, as Lightning does in training alone."""
        if self.trainer.received_sigterm:
            raise SIGTERMException

    def predict_step(self, batch: ReadScan, batch_idx: int) -> Segmentation | str:
        """Segment a scan, or say why not."""
        if batch.prepared is None:
            return str(batch.failure)
        try:
            return self.segmenter.segment(batch.prepared, self.on_base_grid, self.keep_probabilities)
        except UserError as error:
            return f"{batch.files.paths[0]}: {error}"
        except (MemoryError, RuntimeError) as error:
            return f"{batch.files.paths[0]}: {_out_of_memory(error)}"


def _end_with_parent(worker: int) -> None:
    """A loader that waits to hand on its scan would outlive a process that is killed."""
    end_with_parent()


def _out_of_memory(error: MemoryError | RuntimeError) -> str:
    """What to say of it; any other error of torch goes on."""
    if not isinstance(error, MemoryError) and not any(
        words in str(error) for words in ("out of memory", "allocate memory")
    ):
        raise error
    return f"{OUT_OF_MEMORY} ({reason(error)})"
