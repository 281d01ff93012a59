"""Segmenting many scans through Lightning's Trainer: what is read, what is run, and the record of each case."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import lightning as L
import numpy as np
from torch import nn
from torch.utils.data import DataLoader, Dataset

from rare_lightning.data.voxels import reason
from rare_lightning.errors import UserError
from rare_lightning.inference.scans import Scan, ScanFiles, read_scan
from rare_lightning.inference.segmenter import Prepared, Segmentation, Segmenter

OUT_OF_MEMORY = "ran out of memory: lower --memory for smaller windows, or enter at a deeper --level"


@dataclass(frozen=True)
class Case:
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


@dataclass(frozen=True)
class Answer:
    """What became of a case: a segmentation, or the reason why there is none."""

    files: ScanFiles
    scan: Scan | None = None
    segmentation: Segmentation | None = None
    failure: str | None = None


class ScanDataset(Dataset[Case]):
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

    def __getitem__(self, index: int) -> Case:
        """One case; a scan that cannot be used does not stop the others."""
        files = self.scans[index]
        try:
            scan = read_scan(files)
            prepared = self.segmenter.prepare(scan, str(files.paths[0]), self.level)
            return Case(files, scan if self.keep_voxels else replace(scan, array=np.empty(0)), prepared)
        except UserError as error:
            return Case(files, failure=str(error))
        except (MemoryError, RuntimeError) as error:
            return Case(files, failure=f"{files.paths[0]}: {_out_of_memory(error)}")

    def loader(self, num_workers: int = 0) -> DataLoader[Case]:
        """One case per batch, in order."""
        return DataLoader(self, batch_size=1, num_workers=num_workers, collate_fn=itemgetter(0))


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

    def predict_step(self, batch: Case, batch_idx: int) -> Answer:
        """Segment a case; a failure is kept for the report."""
        if batch.prepared is None:
            return Answer(batch.files, failure=batch.failure)
        try:
            answer = self.segmenter.segment(batch.prepared, self.on_base_grid, self.keep_probabilities)
            return Answer(batch.files, batch.scan, answer)
        except UserError as error:
            return Answer(batch.files, failure=f"{batch.files.paths[0]}: {error}")
        except (MemoryError, RuntimeError) as error:
            return Answer(batch.files, failure=f"{batch.files.paths[0]}: {_out_of_memory(error)}")


def _out_of_memory(error: MemoryError | RuntimeError) -> str:
    """What to say of it; any other error of torch goes on."""
    if not isinstance(error, MemoryError) and not any(
        words in str(error) for words in ("out of memory", "allocate memory")
    ):
        raise error
    return f"{OUT_OF_MEMORY} ({reason(error)})"
