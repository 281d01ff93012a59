"""Loggers that also show slices: Weights & Biases, whose failures a run survives, and TensorBoard."""

import io
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import lightning.pytorch.loggers
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.image import imread

from rare_lightning.data.geometry import format_spacing
from rare_lightning.evaluation.figures import plot_montage
from rare_lightning.evaluation.protocol import TRUTHS
from rare_lightning.evaluation.slices import Slice, read_slices, scaled_to_bytes
from rare_lightning.evaluation.tables import mean_defined, read_cases
from rare_lightning.metrics import Scores

log = logging.getLogger(__name__)
P = ParamSpec("P")


def _surviving(
    method: Callable[Concatenate["WandbRunLogger", P], None],
) -> Callable[Concatenate["WandbRunLogger", P], None]:
    """In the first process alone; the first failure ends the logging with one line, and not the run."""

    @rank_zero_only
    @wraps(method)
    def attempt(self: "WandbRunLogger", /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.failed:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever a full disk, a dead service or an unknown network raises
            self.failed = True
            log.warning(
                "Weights & Biases failed (%s: %s). The run goes on without it; the CSV files have everything.",
                type(error).__name__,
                error,
            )
            with suppress(Exception):  # or it prints a traceback at the end of the process
                import wandb

                wandb.teardown(exit_code=1)

    return attempt


class WandbRunLogger(lightning.pytorch.loggers.WandbLogger):
    """Lightning's, with slices, a test's table and artifacts, and without the power to stop or stall a run.

    Where the server cannot be reached it logs offline, into ``save_dir/wandb``.

    Args:
        group: Joins the W&B runs of one run folder.
        job_type: ``fit``, ``validate`` or ``test``.
        **kwargs: Those of Lightning's.

    Attributes:
        failed: Whether W&B failed and is left alone since.
    """

    def __init__(self, group: str | None = None, job_type: str | None = None, **kwargs: Any) -> None:
        super().__init__(group=group, job_type=job_type, **kwargs)
        self.failed = False

    @property
    def experiment(self) -> Any:
        """The W&B run, begun when first asked for."""
        if self._experiment is None:
            self._begin()
        return super().experiment

    @rank_zero_only
    def _begin(self) -> None:
        import wandb

        # Copies of artifacts wait for their upload here, and not in the home folder, whose quota is small on clusters.
        folder = Path(self._wandb_init["dir"]).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        if self._wandb_init.get("settings") is None:
            self._wandb_init["settings"] = wandb.Settings(silent=self._offline, init_timeout=30)
        self._wandb_init.pop("anonymous", None)  # W&B knows it no more, and would say so
        self._wandb_init["resume"] = None if self._offline else "allow"  # offline it would say that it cannot
        try:
            _ = super().experiment
        except wandb.errors.Error as error:
            if self._offline:
                raise
            log.warning(
                "Weights & Biases cannot be reached (%s): logging offline. Later: wandb sync %s/wandb/offline-run-*",
                str(error).splitlines()[0] if str(error) else type(error).__name__,
                self._wandb_init["dir"],
            )
            # Under an id of its own: synced, it would overwrite a run that it was to go on with.
            self._wandb_init.update(mode="offline", id=None, resume=None, settings=wandb.Settings(silent=True))

    @_surviving
    def log_hyperparams(self, params: Any) -> None:
        """Configuration of the run."""
        super().log_hyperparams(params)

    @_surviving
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Numbers and media of one step."""
        super().log_metrics(metrics, step)

    @_surviving
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """Upload the checkpoint where ``log_model`` asks for it."""
        super().after_save_checkpoint(checkpoint_callback)

    @_surviving
    def finalize(self, status: str) -> None:
        """End the W&B run, so that another command of this process begins its own."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish(exit_code=0 if status == "success" else 1)
            self._experiment = None

    @_surviving
    def log_slices(
        self, key: str, slices: Mapping[str, Sequence[Slice]], class_names: Sequence[str], step: int
    ) -> None:
        """Slices of cases, level by level, under masks ``truth`` and ``prediction``, as ``KEY/case_1`` and so on."""
        images = {
            f"{key}/case_{number}": [_masked_image(case, piece, class_names) for piece in pieces]
            for number, (case, pieces) in enumerate(slices.items(), start=1)
        }
        super().log_metrics(images, step)  # type: ignore[arg-type]  # annotated for numbers alone

    @_surviving
    def log_test(self, folder: Path, checkpoint: Path) -> None:
        """What ``rare test`` wrote: mean scores, Dice by resolution, a table of cases, and the files as artifacts.

        Args:
            folder: With ``cases.csv``, ``summary.json`` and ``slices.npz``.
            checkpoint: The tested one.
        """
        import wandb

        summary = json.loads((folder / "summary.json").read_text("utf-8"))
        charts = {f"test/dice_by_resolution/{truth}": _dice_by_resolution(summary[truth]) for truth in TRUTHS}
        super().log_metrics({**_mean_scores(summary), **charts, "test/cases": _table_of_cases(folder)})
        for kind, name, paths in (
            ("model", "checkpoint", [checkpoint]),
            ("evaluation", "test", [folder / "cases.csv", folder / "summary.json"]),
        ):
            artifact = wandb.Artifact(f"{name}-{self.experiment.id}", kind)
            for path in paths:
                artifact.add_file(str(path))
            self.experiment.log_artifact(artifact)


class TensorBoardRunLogger(lightning.pytorch.loggers.TensorBoardLogger):
    """Lightning's, with slices."""

    @rank_zero_only
    def log_slices(
        self, key: str, slices: Mapping[str, Sequence[Slice]], class_names: Sequence[str], step: int
    ) -> None:
        """One montage of the cases: levels down, image, truth and prediction across."""
        picture = io.BytesIO()
        plot_montage(list(slices.items()), class_names).savefig(picture, dpi=110, format="png")
        picture.seek(0)
        self.experiment.add_image(key, imread(picture), step, dataformats="HWC")


def _masked_image(case: str, piece: Slice, class_names: Sequence[str]) -> Any:
    import wandb

    masks = {
        name: {"mask_data": _upright(labels), "class_labels": dict(enumerate(class_names))}
        for name, labels in (("truth", piece.truth), ("prediction", piece.prediction))
    }
    caption = f"{case}, level {piece.level}, {piece.spacing} mm, Dice {piece.dice:.3f}"
    return wandb.Image(_upright(scaled_to_bytes(piece.image)), caption=caption, masks=masks)


def _upright(plane: Any) -> Any:
    """``(right, anterior)`` to rows from the top, as figures show it."""
    return plane.T[::-1]


def _mean_scores(summary: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float | None] = {}
    for truth in TRUTHS:
        scores |= {f"test/{truth}/{score}": value for score, value in summary[truth]["mean"].items()}
        for level, entry in summary[truth]["levels"].items():
            scores[f"test/{truth}/dice/level_{level}"] = entry["mean"]["dice"]
    return {name: value for name, value in scores.items() if value is not None}


def _dice_by_resolution(scores: dict[str, Any]) -> Any:
    import wandb

    levels = list(scores["levels"].values())
    names = list(levels[0]["classes"])
    curves = [[entry["classes"][name]["dice"] for entry in levels] for name in names]
    coarsest = [max(map(float, entry["spacing_mm"].split("x"))) for entry in levels]
    return wandb.plot.line_series(
        coarsest,
        [*curves, [entry["mean"]["dice"] for entry in levels]],
        [*names, "mean"],
        title="Dice by resolution",
        xname="scan spacing (mm)",
    )


def _table_of_cases(folder: Path) -> Any:
    """A line per case and level: the slice, and scores against both truths, means over classes."""
    import wandb

    rows = read_cases(folder / "cases.csv")
    scores = [f"{truth} {score}" for truth in TRUTHS for score in Scores._fields]
    table = wandb.Table(columns=["case", "level", "spacing_mm", "slice", *scores])
    for case in dict.fromkeys(row.case for row in rows):
        pieces, class_names = read_slices(folder / "slices.npz", case)
        for piece in pieces:
            of_level = [row for row in rows if (row.case, row.level) == (case, piece.level)]
            means = [
                mean_defined(row.scores[index] for row in of_level if row.truth == truth)
                for truth in TRUTHS
                for index in range(len(Scores._fields))
            ]
            spacing = format_spacing(of_level[0].spacing_mm)
            table.add_data(case, piece.level, spacing, _masked_image(case, piece, class_names), *means)
    return table
