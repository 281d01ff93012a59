"""LightningModule: a network, the multi-resolution objective, and the steps of training and evaluation."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isinf
from statistics import fmean
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from rare_lightning.configuration import keep_plain_hyperparameters
from rare_lightning.data.datamodule import Batch, DecathlonDataModule
from rare_lightning.data.task import Regions, each_class
from rare_lightning.errors import UserError
from rare_lightning.evaluation.label_grids import on_grids_of_labels, without_padding_on_grids
from rare_lightning.evaluation.protocol import (
    Row,
    Truth,
    answer_by_truth,
    score_level,
    without_padding,
)
from rare_lightning.inference.windows import segment_level
from rare_lightning.level_cycle import LevelCycle, make_level_cycle
from rare_lightning.metrics.running_dice import RunningDice
from rare_lightning.networks import MultiResolutionNetwork, Prediction, Pyramid
from rare_lightning.networks.grids import Spacing, level_spacing
from rare_lightning.objectives import MultiResolutionLoss
from rare_lightning.processes import gather
from rare_lightning.schedules import Schedule, Scheduler


@dataclass(frozen=True)
class LevelResult:
    """What a test step found for one case at one level; tensors on the CPU, without padding.

    Attributes:
        level: The level.
        rows: Scores against both truths.
        image: ``(D_l, H_l, W_l)``, first channel on the level grid.
        truth: ``(D, H, W)`` full-resolution label.
        prediction: ``(D, H, W)`` answer on its grid.
        label_spacing: Of that grid in mm.
    """

    level: int
    rows: list[Row]
    image: Tensor
    truth: Tensor
    prediction: Tensor
    label_spacing: Spacing


class SegmentationModule(L.LightningModule):
    """Trains a network on level pyramids and evaluates it at every level.

    Args:
        network: Pyramid of images in, :class:`~rare_lightning.networks.Prediction` out.
        class_names: Background first.
        objective: Loss of a prediction.
        optimizer: Called with the parameters.
        scheduler: Learning rate over the whole run: ``constant``, ``one_cycle`` (peak at the optimizer's rate;
            its momentum stays), ``cosine`` to 0, or ``polynomial`` of power 0.9 to 0.
        level_cycle: Levels of the first batch, of the second, and so on, and from the start again; all levels in every
            batch if None. ``nested`` begins with the two lowest resolutions and adds a level with every batch, up to
            all: low levels cost little, and so see more cases. ``each`` takes one level after another; with a
            fixed-resolution network that is multi-resolution augmentation: a scan is brought down to one level and up
            again.
        regions: Names and label values of what is scored at test; each foreground class alone by default.
        nsd_tolerance_mm: Surface distance that NSD forgives at test, in mm.
        window_size: Whole volumes are segmented in overlapping windows of this many base voxels per axis, the size of
            the training patches: normalisation per sample sees other statistics in another extent. None for networks
            that were trained on whole volumes.
        channels_last: Keep the channels of a voxel beside each other in memory: on a CPU faster by some hundredths in
            mixed precision, and slower by a tenth in full (docs/results.md, epoch).
        init_from: Checkpoint or model of ``rare models`` that ``rare fit`` begins a training from, where its weights
            fit: heads are made anew for other classes, the first convolution for other channels. It is a record: in
            Python, call :func:`~rare_lightning.configuration.begin_from` with the network.

    Raises:
        ValueError: If level_cycle names levels that the network does not know, or none, level_weights are not as many
            as its levels or 0 for all of a batch, or nsd_tolerance_mm is negative.
    """

    def __init__(
        self,
        network: MultiResolutionNetwork,
        class_names: list[str],
        objective: MultiResolutionLoss | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: Scheduler = "one_cycle",
        level_cycle: LevelCycle = None,
        regions: dict[str, list[int]] | None = None,
        nsd_tolerance_mm: float = 1.0,
        window_size: list[int] | None = None,
        channels_last: bool = False,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        missing = [name for name in ("levels", "answer_grid", "coarsest_stride") if not hasattr(network, name)]
        if missing:
            raise ValueError(
                f"{type(network).__name__} must set {', '.join(missing)}, as a MultiResolutionNetwork does"
            )
        weights = objective.level_weights if objective else None
        if weights is not None and len(weights) != max(network.levels) + 1:
            raise ValueError(f"level_weights {list(weights)} must be one for each level, 0 to {max(network.levels)}")
        if nsd_tolerance_mm < 0:
            raise ValueError(f"nsd_tolerance_mm ({nsd_tolerance_mm}) must be >= 0")
        with warnings.catch_warnings():
            # Kept is a description of the network, not the module that Lightning warns of.
            warnings.filterwarnings("ignore", message="Attribute '.*' is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        keep_plain_hyperparameters(self)
        self.memory_format = torch.channels_last_3d if channels_last else torch.contiguous_format
        # Only the convolutions' kernels have an order of channels and voxels.
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]  # missing from its stub
        self.class_names = class_names
        self.regions: Regions = each_class(class_names) if regions is None else regions
        self.objective = objective or MultiResolutionLoss()
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.levels: tuple[int, ...] = network.levels
        self.level_cycle = make_level_cycle(level_cycle, self.levels)
        if weights is not None and not all(sum(weights[level] for level in batch) for batch in self.level_cycle):
            raise ValueError(f"level_weights {list(weights)} leave nothing to train of a batch of {self.level_cycle}")
        self.train_levels = sorted(set().union(*self.level_cycle))
        self.nsd_tolerance_mm = nsd_tolerance_mm
        self.window_size = window_size
        self.train_dice = self._configure_dice()
        self.val_dice = self._configure_dice()
        # By name, of each validation case. Lightning's own means are of each process first, and then of the processes;
        # torchmetrics' MeanMetric either leaves out NaN or knows no weights.
        self.val_losses: dict[str, list[Tensor]] = defaultdict(list)

    def _configure_dice(self) -> nn.ModuleDict:
        return nn.ModuleDict({str(level): RunningDice(len(self.class_names)) for level in self.levels})

    def forward(self, images: Pyramid) -> Prediction:
        """Level -> ``(B, C_in, D_l, H_l, W_l)`` to logits and features by level.

        Raises:
            ValueError: If the network does not take images of that size.
            UserError: If it answers with anything but a prediction of these classes.
        """
        laid_out = {level: image.contiguous(memory_format=self.memory_format) for level, image in images.items()}
        prediction = self.network(laid_out)
        kind = type(self.network).__name__
        if not isinstance(prediction, Prediction):
            raise UserError(
                f"{kind}.forward must return a rare_lightning.networks.Prediction: {type(prediction).__name__}"
            )
        for level, logits in prediction.logits.items():
            if logits.ndim != 5 or logits.shape[1] != len(self.class_names):
                raise UserError(
                    f"{kind}.forward must answer level {level} with logits (B, {len(self.class_names)}, D, H, W), one "
                    f"channel for each of out_channels classes: {tuple(logits.shape)}"
                )
        return prediction

    def setup(self, stage: str) -> None:
        """Tell processes that share gradients not to wait for those of levels that a batch leaves out.

        Raises:
            UserError: If a level is another for the network than for the data, or the classes are.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if isinstance(data, DecathlonDataModule):
            self._refuse_other(data)
        if stage != "fit" or not isinstance(self.trainer.strategy, DDPStrategy):
            return
        if self.level_cycle != [list(self.levels)] or getattr(data, "lacks_levels", False):
            self.trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Objective over the batch's levels, times the share that their weights have in those of all trained levels.

        So one pass through the cycle weighs the levels as one step with all of them would.

        Raises:
            UserError: If the loss is not finite.
        """
        # The same in every process, and in a run that was interrupted. Epochs count on, as one may end within a cycle.
        batches = self.current_epoch * int(self.trainer.num_training_batches) + batch_idx
        planned = self.level_cycle[batches % len(self.level_cycle)]
        # What scans show none of, theirs that is the nearest stands for.
        there = self._levels_of(batch)
        levels = [level for level in planned if level in there] or there[:1]
        with _explained(batch, ". Set a larger data.patch_size, or a smaller data.depth"):
            prediction = self({level: batch["image"][level] for level in levels})
        prediction, targets = on_grids_of_labels(self.network, prediction, batch["label"])
        parts: dict[str, Tensor] = self.objective(prediction, targets, self.current_epoch)
        size = len(batch["case"])
        loss = parts.pop("loss")
        if not torch.isfinite(loss):
            # One such step leaves NaN in every weight, and the rest of the run trains nothing.
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch} on {', '.join(batch['case'])}. Go on "
                "from the run's last checkpoint, with a lower learning rate or --trainer.precision 32-true"
            )
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        self.log_dict({f"train/{k}": v for k, v in parts.items()}, on_step=False, on_epoch=True, batch_size=size)
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # given later
        cycle = batch_idx // len(self.level_cycle)
        if every and cycle % every == 0:  # of every batch, it would take a tenth of the time
            self._update_dice(self.train_dice, prediction.logits, targets)
        return loss * self.objective.share(levels, self.train_levels)

    def on_train_epoch_end(self) -> None:
        """Log Dice of the epoch's training patches, augmented as they were, of every ``log_every_n_steps``-th cycle."""
        self._log_dice(self.train_dice, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Objective and Dice over the levels that the scan is seen at, of the voxels that are no padding."""
        counted = int((~batch["again"]).sum())
        parts: dict[str, Tensor] = {}
        # In windows each level runs alone anyway, and of large volumes no two levels' answers fit into memory.
        there = self._levels_of(batch)
        for levels in [there] if self.window_size is None else [[level] for level in there]:
            with _explained(batch):
                prediction = self._predict_whole({level: batch["image"][level] for level in levels})
            shape = batch["shape"].amax(dim=0).tolist()
            within, targets = without_padding_on_grids(self.network, prediction, batch["label"], shape)
            found = self.objective(within, targets, self.current_epoch)
            loss = found["loss"] * self.objective.share(levels, there)
            parts |= {**found, "loss": parts.get("loss", 0) + loss}
            self._update_dice(self.val_dice, within.logits, targets, counted)
        for name, value in parts.items():
            self.val_losses[name] += [value] * counted

    def on_validation_epoch_end(self) -> None:
        """Log ``val/dice``, the mean over cases, classes and levels that checkpoints and early stopping monitor."""
        found = gather({name: torch.stack(values).tolist() for name, values in self.val_losses.items() if values})
        for name in sorted(set().union(*found)):  # the scans of a process may lack a level
            self.log(f"val/{name}", fmean(value for each in found for value in each.get(name, ())))
        self.val_losses.clear()
        self._log_dice(self.val_dice, "val")

    def test_step(  # type: ignore[override]  # outputs go to callbacks as they are
        self, batch: Batch, batch_idx: int
    ) -> list[LevelResult]:
        """One case alone at each level that it is seen at, as at inference, scored against both truths."""
        return [self._test_level(batch, level) for level in self._levels_of(batch)]

    def predict_first_case(self, batch: Batch, level: int) -> tuple[Tensor, dict[Truth, Tensor], dict[Truth, Tensor]]:
        """The first case of a batch at one level, its labels, and the network's answer; all without padding.

        Args:
            batch: Whole volumes.
            level: The level, which the network gets alone.

        Returns:
            First channel ``(D_l, H_l, W_l)`` of the image on the level grid; labels and answers, class indices: truth
            ``level`` on the level grid, ``fine`` on the label's own.
        """
        stride, labels = self.network.level_stride(level), batch["label"]
        shape = batch["shape"][0].tolist()
        with _explained(batch):
            logits = self._predict_whole({level: batch["image"][level][:1]}).logits[level]
        softmax = logits.float().softmax(dim=1)
        predictions = answer_by_truth(softmax, stride, self.network.answer_grid, shape, labels.finest_stride)
        truths: dict[Truth, Tensor] = {
            "level": without_padding(labels[level][0], shape, stride),
            "fine": without_padding(labels.finest[0], shape, labels.finest_stride),
        }
        return without_padding(batch["image"][level][0, 0], shape, stride), truths, predictions

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule stepped after every batch.

        Raises:
            UserError: If the optimizer refuses its settings, or the schedule has no end.
        """
        try:
            optimizer = self.optimizer(self.parameters())
        except ValueError as error:
            raise UserError(f"model.optimizer: {error}") from error
        steps = 0 if self.scheduler == "constant" else self.trainer.estimated_stepping_batches
        if isinf(steps):
            raise UserError(
                f"model.scheduler {self.scheduler} needs to know how long the run is: give trainer.max_epochs or "
                "max_steps, or --model.scheduler constant"
            )
        by_epochs = steps and self.trainer.max_steps == -1
        epoch_steps = steps / (self.trainer.max_epochs or 1) if by_epochs else None
        schedule = Schedule(optimizer, self.scheduler, steps, epoch_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A run that goes on with other settings follows them: its optimizer's numbers, its schedule and its length.

        Raises:
            UserError: If the weights are another network's, or the state to go on with another optimizer's.
        """
        own, saved = self.state_dict(), checkpoint["state_dict"]
        if {name: weight.shape for name, weight in own.items()} != {n: weight.shape for n, weight in saved.items()}:
            raise UserError(
                "the checkpoint's network is another than that of model.network, data.levels and data.depth"
            )
        if self._trainer is None or not self._trainer.training:
            return
        settings = (kept.get("optimizer") for kept in (checkpoint["hyper_parameters"], self.hparams))
        # By its last word, since torch.optim.AdamW is torch.optim.adamw.AdamW too.
        before, now = (kept["class_path"].rpartition(".")[-1] if kept else None for kept in settings)
        if before and now and before != now:
            raise UserError(
                f"model.optimizer is {now} and was {before}, with which its state cannot go on. Begin a new run."
            )

    def _predict_whole(self, images: Pyramid) -> Prediction:
        """Segment whole volumes, in windows where there is a window size.

        Then each level runs alone, its windows blended with Gaussian weights, and there are no features to compare.
        """
        if self.window_size is None:
            prediction: Prediction = self(images)
            return prediction
        logits = {
            level: segment_level(
                self.network, level, image.contiguous(memory_format=self.memory_format), self.window_size
            )
            for level, image in images.items()
        }
        return Prediction(logits, {}, {})

    def _refuse_other(self, data: DecathlonDataModule) -> None:
        own = {level: tuple(self.network.level_stride(level)) for level in self.levels}
        of_data = dict(enumerate(data.strides))
        if not own.items() <= of_data.items():
            raise UserError(
                f"{type(self.network).__name__} has levels of {list(own.values())} base voxels, and the data of "
                f"{data.strides}: give both the same levels, depth and strides, as rare fit does where a network takes "
                "them as arguments"
            )
        if self.class_names != list(data.task.classes):
            raise UserError(f"class_names {self.class_names} are not those of the data, {list(data.task.classes)}")

    def _levels_of(self, batch: Batch) -> list[int]:
        return [level for level in self.levels if level in batch["image"]]

    def _update_dice(
        self, metrics: nn.ModuleDict, logits: Pyramid, targets: Pyramid, counted: int | None = None
    ) -> None:
        """Count the first cases of a batch, all by default; metrics that count none keep step between processes."""
        for level, answer in logits.items():
            metric: Any = metrics[str(level)]
            # torch's argmax over a strided axis takes five times as long as its max.
            metric.update(answer[:counted].detach().max(dim=1).indices, targets[level][:counted])

    def _log_dice(self, metrics: nn.ModuleDict, stage: str) -> None:
        means = []
        called = set().union(*gather({level for level in self.levels if metrics[str(level)].update_called}))
        for level in sorted(called):  # others were in no batch of the epoch
            metric: Any = metrics[str(level)]
            metric.update([], [])  # where they were in batches of other processes alone
            by_class = metric.compute().reshape(-1)  # torchmetrics drops the axis of a single class
            metric.reset()
            for name, dice in zip(self.class_names[1:], by_class, strict=True):
                self.log(f"{stage}/dice/level_{level}/{name}", dice)
            means.append(by_class.nanmean())
            self.log(f"{stage}/dice/level_{level}", means[-1])
        if means:  # the rest of an epoch that a checkpoint lies within may have no step
            self.log(f"{stage}/dice", torch.stack(means).nanmean(), prog_bar=stage == "val")

    def _test_level(self, batch: Batch, level: int) -> LevelResult:
        if len(batch["case"]) != 1:
            raise ValueError(f"a test batch must hold one case, not {len(batch['case'])}")
        stride = self.network.level_stride(level)
        case, spacing = batch["case"][0], batch["spacing"][0]
        image, truths, predictions = self.predict_first_case(batch, level)
        label_stride = batch["label"].finest_stride
        rows = score_level(
            predictions, truths, case, level, stride, spacing, self.regions, self.nsd_tolerance_mm, label_stride
        )
        label_spacing = level_spacing(spacing, label_stride)
        return LevelResult(level, rows, image.cpu(), truths["fine"].cpu(), predictions["fine"].cpu(), label_spacing)


@contextmanager
def _explained(batch: Batch, advice: str = "") -> Iterator[None]:
    """Context: what a network says of images that it does not take is said with their cases."""
    try:
        yield
    except ValueError as error:
        cases = ", ".join(batch["case"])
        raise UserError(f"{cases}: {error}{advice}") from error
