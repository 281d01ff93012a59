"""Writes what a test found: cases.csv, summary.json, slices.npz, the table, and the figures."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from rich.console import Console

from rare_lightning.callbacks.training_record import TrainingRecord
from rare_lightning.data.datamodule import Batch, DecathlonDataModule
from rare_lightning.evaluation.figures import plot_dice_by_resolution, plot_montage, save_figure
from rare_lightning.evaluation.protocol import TRUTHS, Row
from rare_lightning.evaluation.slices import Slice, cut_slice, write_slices
from rare_lightning.evaluation.tables import (
    describe_summary,
    mean_defined,
    terminal_table,
    write_scores,
)
from rare_lightning.files import unused
from rare_lightning.module import LevelResult, SegmentationModule
from rare_lightning.processes import gather
from rare_lightning.provenance import command_line


class TestReport(L.Callback):
    """Collects the scores of all processes and writes the report in the first one.

    Args:
        folder: Where ``cases.csv``, ``summary.json``, ``slices.npz``, ``dice_by_resolution.png`` and ``montage.png``
            go.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.rows: list[Row] = []
        self.slices: dict[str, list[Slice]] = {}
        self.sizes: dict[str, list[int]] = {}

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Forget an earlier test.

        Raises:
            TypeError: If the test is of other modules than this package's.
        """
        if not isinstance(pl_module, SegmentationModule) or not isinstance(trainer.datamodule, DecathlonDataModule):  # type: ignore[attr-defined]
            raise TypeError("TestReport is of the test of a SegmentationModule on a DecathlonDataModule")
        self.rows, self.slices, self.sizes = [], {}, {}

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the scores, and one slice per level, of a case that was not given for nothing but keeping step."""
        if batch["again"].item():
            return
        results: list[LevelResult] = outputs
        self.rows += [row for result in results for row in result.rows]
        self.slices[batch["case"][0]] = [
            cut_slice(r.level, r.rows[0].spacing_mm, r.image, r.truth, r.prediction, r.label_spacing) for r in results
        ]
        self.sizes[batch["case"][0]] = batch["shape"][0].tolist()

    def on_test_epoch_end(  # type: ignore[override]  # as the test began with
        self, trainer: L.Trainer, pl_module: SegmentationModule
    ) -> None:
        """Write the report."""
        gathered = gather((self.rows, self.slices, self.sizes))
        if not trainer.is_global_zero:
            return
        rows = sorted(
            (row for part, _, _ in gathered for row in part), key=lambda r: (r.case, r.level, TRUTHS.index(r.truth))
        )
        slices = {case: pieces for _, part, _ in gathered for case, pieces in part.items()}
        sizes = {case: size for _, _, part in gathered for case, size in part.items()}
        protocol = {
            "label_downsampling": trainer.datamodule.label_downsampling,  # type: ignore[attr-defined]
            "nsd_tolerance_mm": pl_module.nsd_tolerance_mm,
        }
        median_size = np.median(list(sizes.values()), axis=0).astype(int).tolist()
        self._keep_earlier()
        record = TrainingRecord.of(trainer)  # empty if the checkpoint does not tell
        summary = write_scores(rows, self.folder, protocol, (record and record.record) or None, median_size)
        write_slices(slices, pl_module.class_names, self.folder / "slices.npz")
        plot_dice_by_resolution(summary, self.folder / "dice_by_resolution.png")
        montage = plot_montage(_median_and_worst(slices), pl_module.class_names)
        save_figure(montage, self.folder / "montage.png", dpi=110)
        console = Console()
        for truth in TRUTHS:
            console.print(terminal_table(summary, truth))
        console.print(describe_summary(summary), highlight=False)
        for logger in trainer.loggers:
            if hasattr(logger, "log_test"):
                logger.log_test(self.folder, Path(trainer.ckpt_path or ""))

    def _keep_earlier(self) -> None:
        """Move the report of another test aside; the same command given again writes over its own."""
        try:
            earlier = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))["test"]["command"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, LookupError, TypeError):
            earlier = None
        if earlier != command_line():
            kept = self.folder.rename(unused(self.folder))
            print(f"The report of an earlier test ({earlier or 'unknown'}) lies in {kept} now")

    def state_dict(self) -> dict[str, Any]:
        """Nothing: a report is of one test."""
        return {}


def _median_and_worst(slices: dict[str, list[Slice]]) -> list[tuple[str, list[Slice]]]:
    """The cases with the median and the lowest mean fine Dice over levels; cases without any foreground come last.

    The median is of those that are seen at the most levels.
    """
    dice = {case: mean_defined(piece.dice for piece in pieces) for case, pieces in slices.items()}
    ranked = sorted(dice, key=lambda case: (np.isnan(dice[case]), dice[case], case))
    defined = [case for case in ranked if not np.isnan(dice[case])] or ranked
    most = max(len(slices[case]) for case in defined)
    seen = [case for case in defined if len(slices[case]) == most]
    median, worst = seen[len(seen) // 2], defined[0]
    if median == worst:
        return [(f"median and worst: {median}", slices[median])]
    return [(f"median: {median}", slices[median]), (f"worst: {worst}", slices[worst])]
