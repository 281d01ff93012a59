"""Writes segmentations: a label map and a record per case, one table of volumes, previews."""

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from rare_lightning.configuration import changed_settings
from rare_lightning.data.scans import Scan, ScanFiles, write_array
from rare_lightning.data.voxels import SUFFIXES, reason
from rare_lightning.errors import UserError
from rare_lightning.evaluation.figures import plot_preview
from rare_lightning.files import write_csv, write_json
from rare_lightning.inference.prediction import ReadScan
from rare_lightning.inference.segmenter import Segmentation
from rare_lightning.processes import gather


class PredictionWriter(BasePredictionWriter):
    """Writes each answer as it comes, whole or not at all; the label map last, so that it says the case is done.

    Args:
        folder: Where ``NAME.nii.gz`` (or the scan's own format), ``NAME.json``, ``volumes.csv``,
            ``NAME.png`` and ``NAME_probabilities.nii.gz`` go.
        classes: Class names by label value.
        settings: What answers follow from, for the record: names and digests of the models, routing and the like.
        preview: Write ``NAME.png``.
        probabilities: Whether answers come with probabilities.
        window: Intensities that are black and white in pictures; of each scan's own by default.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        settings: dict[str, Any],
        preview: bool = False,
        probabilities: bool = False,
        window: tuple[float, float] | None = None,
    ) -> None:
        super().__init__("batch")
        self.folder = folder
        self.classes = list(classes)
        self.settings = settings
        self.preview = preview
        self.probabilities = probabilities
        self.window = window
        self.failures: list[str] = []

    def path_of(self, scan: ScanFiles) -> Path:
        """Label map of a scan."""
        return self.folder / (scan.name + scan.suffix)

    def is_done(self, scan: ScanFiles) -> bool:
        """Whether all that is wanted of a scan has been written."""
        wanted = [self.path_of(scan)]
        wanted += [self._preview_of(scan)] if self.preview else []
        wanted += [self._probabilities_of(scan)] if self.probabilities else []
        return all(path.exists() for path in wanted)

    def refuse_other_settings(self, scan: ScanFiles) -> None:
        """Answers of one folder are of one kind, which ``volumes.csv`` does not tell apart.

        Raises:
            UserError: If the scan was answered with other settings than these.
        """
        before = self._record_of(self.folder / f"{scan.name}.json").get("settings")
        if isinstance(before, dict) and (changes := changed_settings(before, self.settings)):
            name, was, now = changes[0]
            raise UserError(
                f"{self.folder}: {scan.name} was answered with {name} {was}, and not {now}; choose another --output"
            )

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Segmentation | str,
        batch_indices: Sequence[int] | None,
        batch: ReadScan,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one answer, or remember why there is none."""
        files, scan, answer = batch.files, batch.scan, prediction
        if isinstance(answer, str) or scan is None:
            self.failures.append(f"{files.name}: {answer}")
            return
        record = {
            "scan": [path.name for path in files.paths],
            "settings": self.settings,
            "classes": dict(enumerate(self.classes)),
            "spacing_mm": list(scan.geometry.spacing),
            "level": answer.route.level,
            "route": answer.route.note,
            "window": answer.window,
            "volumes_ml": answer.volumes_ml,
        }
        windows = f", in windows of {'x'.join(map(str, answer.window))}" if answer.window else ""
        print(f"{files.name}: {answer.route.note}{windows}")
        try:
            write_json(record, self.folder / f"{files.name}.json")
            if self.preview:
                plot_preview(
                    scan.geometry.to_canonical(scan.array[0]),
                    answer.geometry.to_canonical(answer.labels),
                    scan.geometry.canonical_affine,
                    answer.geometry.canonical_affine,
                    self.classes,
                    self._preview_of(files),
                    self.window,
                )
            own_grid = answer.geometry is scan.geometry
            grid = scan if own_grid else Scan(answer.labels[None], answer.geometry)
            if answer.probabilities is not None:
                write_array(answer.probabilities, grid, self._probabilities_of(files))
            write_array(answer.labels, grid, self.path_of(files))
        except (OSError, RuntimeError) as error:  # ITK's writers raise the latter
            raise UserError(f"{self.folder}: cannot be written to ({reason(error)})") from error

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Bring the failures of all processes together, and the volumes of all cases in the folder into one table."""
        # Sorted, since processes finish in any order.
        self.failures = sorted(failure for failures in gather(self.failures) for failure in failures)
        if trainer.is_global_zero:
            self.write_volumes()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Of a run that is interrupted, put what there is into the table."""
        if trainer.is_global_zero:
            with suppress(OSError):  # of which there is an exception already
                self.write_volumes()

    def write_volumes(self) -> None:
        """One table of all cases in the folder that have a label map, those of earlier runs too."""
        rows = []
        for path in sorted(self.folder.glob("[!.]*.json")):
            if not any((self.folder / (path.stem + suffix)).exists() for suffix in SUFFIXES):
                continue  # of a run that ended before the label map
            record = self._record_of(path)
            try:
                level, volumes = record["level"], {name: f"{ml:.4f}" for name, ml in record["volumes_ml"].items()}
            except (ValueError, LookupError, TypeError, AttributeError):
                continue  # somebody else's file
            if list(volumes) == self.classes[1:]:
                rows.append([path.stem, level, *volumes.values()])
        if rows:
            header = ["case", "level", *(f"{name}_ml" for name in self.classes[1:])]
            write_csv([header, *rows], self.folder / "volumes.csv", shared=True)  # by jobs that share the folder

    @staticmethod
    def _record_of(path: Path) -> dict[str, Any]:
        """What is written of an answer; nothing where it cannot be read, or is somebody else's file."""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) else {}

    def _preview_of(self, scan: ScanFiles) -> Path:
        return self.folder / f"{scan.name}.png"

    def _probabilities_of(self, scan: ScanFiles) -> Path:
        return self.folder / f"{scan.name}_probabilities{scan.suffix}"
