"""``rare fit``, ``validate`` and ``test``: LightningCLI with run folders and the task's classes."""

import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_info

from rare_lightning.callbacks import EpochSeed, TestReport, TrainingPace, TrainingRecord, ValidationSlices
from rare_lightning.checkpoint_io import LAST, AtomicCheckpointIO, find_last
from rare_lightning.commands.settings import (
    OF_DATA,
    checkpoint_to_resume,
    compare_settings,
    plan_network,
    refuse_another_split,
    refuse_broken_yaml,
    refuse_nothing_to_do,
    refuse_what_cannot_hold,
    with_settings_of_checkpoint,
)
from rare_lightning.configuration import begin_from, read_checkpoint
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.download import find_task
from rare_lightning.data.geometry import format_spacing
from rare_lightning.data.task import Task, regions_of
from rare_lightning.errors import UserError, few
from rare_lightning.files import unused, write_json
from rare_lightning.models import find_checkpoint, model_names
from rare_lightning.module import SegmentationModule
from rare_lightning.processes import sigterm_before_loaders
from rare_lightning.provenance import describe_process
from rare_lightning.run_folder import (
    log_into,
    only_writer,
    refuse_folder_in_use,
    run_folder,
)


class RunRecord(SaveConfigCallback):
    """Writes the full configuration and the split into the run folder, and never over an earlier one."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Called on rank 0 alone, before the first step."""
        split = trainer.datamodule.split.as_dict()  # type: ignore[attr-defined]
        if stage == "fit":
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, unused(folder / "config.yaml"), skip_unset=False, multifile=False)
            write_json([split], unused(folder / "splits.json"))
        loggers = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]  # the folder has it all
        if not loggers:
            return
        record = yaml.safe_load(self.parser.dump(self.config, skip_unset=False))
        if stage == "fit":
            record["split"] = split
        else:  # that of the training is not to be overwritten
            record = {section: record[section] for section in ("model", "data")}
        record[stage] = describe_process()
        for logger in loggers:
            logger.log_hyperparams(record)


class RareCLI(LightningCLI):
    """LightningCLI with run folders, and with the task's channels and classes read from its dataset.json."""

    _data_state: dict[str, Any] | None = None
    """Split and preprocessing of the checkpoint that is tested, or that a training goes on from."""

    _root_before: str | None = None
    """Data of the checkpoint that is tested."""

    _processes_before: int | None = None
    """That shared each step of the run that is resumed."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Subcommands, and the Trainer arguments that the CLI itself provides."""
        return {
            "fit": {"model", "train_dataloaders", "val_dataloaders", "datamodule"},
            "validate": {"model", "dataloaders", "datamodule"},
            "test": {"model", "dataloaders", "datamodule"},
        }

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Run folder, checkpointing, and what follows from the data."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder for everything this run writes. By default a new one under runs/; for validate and test, the "
            "one that the checkpoint lies in.",
        )
        parser.add_argument(
            "--resume",
            action="store_true",
            help="For fit: go on with the run in run_dir from its last checkpoint, as if it had not been interrupted; "
            "begin it if it has none.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ValidationSlices, "slices")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/dice",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                # A run that was interrupted after it saved its best, but before its last, saves the same again.
                "checkpoint.enable_version_counter": False,
            }
        )
        task = ("data.root", "data.download")
        counts = {"in_channels": _channel_count, "out_channels": _class_count}
        for name, setting in OF_DATA.items():
            count = counts.get(name)
            parser.link_arguments(task if count else f"data.{setting}", f"model.network.init_args.{name}", count)
        parser.link_arguments("data.patch_size", "model.window_size")
        parser.link_arguments(task, "model.class_names", _class_names)
        parser.link_arguments((*task, "data.regions"), "model.regions", _regions)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the words given to :func:`main`."""
        if not isinstance(args, list):
            raise TypeError(f"args must be a list of words: {args!r}")
        for name in (word.partition("=")[0] for word in args):
            setting = OF_DATA.get(name.rpartition(".")[2])
            if setting and name.startswith("--model.network."):
                # From a file it is overruled without a word: the config.yaml of a run holds it, and may be given again.
                raise UserError(f"{name} follows from the data: give --data.{setting}")
        refuse_broken_yaml(args)
        self.config = parser.parse_args(with_settings_of_checkpoint(args))
        seed = self.config[self.config.subcommand].seed_everything
        if not 0 <= seed < 2**32:
            raise UserError(f"seed_everything ({seed}) must be 0 or more, and less than {2**32}")

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would let a checkpoint's settings overrule those of the command line."""

    def before_instantiate_classes(self) -> None:
        """Give the run its folder."""
        config = self.config[self.subcommand]
        refuse_what_cannot_hold(config)
        if config.resume:
            config.ckpt_path = checkpoint_to_resume(config, str(self.subcommand))
        checkpoint = config.get("ckpt_path")
        folder = run_folder(config.run_dir, None if checkpoint in model_names() else checkpoint)
        if checkpoint is not None:
            checkpoint = config.ckpt_path = str(find_checkpoint(checkpoint))
        if self.subcommand == "fit" and not config.resume:
            refuse_folder_in_use(folder, checkpoint)
        if checkpoint is not None:
            # And not by Lightning, who would run the pickles of one that comes from a URL.
            content = read_checkpoint(checkpoint)
            (self._go_on_from if self.subcommand == "fit" else self._score)(content, config)
        elif self.subcommand == "fit":
            plan_network(config, {})
        else:
            raise UserError(f"rare {self.subcommand} needs --ckpt_path, a checkpoint that rare fit wrote")
        log_into(config.trainer, folder, str(self.subcommand), origin=config.trainer.default_root_dir)
        config.run_dir = str(folder)
        config.trainer.default_root_dir = str(folder)
        config.checkpoint.dirpath = str(folder / "checkpoints")
        # Not save_last of the best's: that one is written only when the best is.
        last = ModelCheckpoint(
            folder / "checkpoints", filename="last", save_on_train_epoch_end=True, enable_version_counter=False
        )
        record, pace = TrainingRecord(), TrainingPace()
        self.trainer_defaults["callbacks"] = [TestReport(folder / "test"), record, pace, EpochSeed(), last]

    def _go_on_from(self, checkpoint: dict[str, Any], config: Namespace) -> None:
        """Train on."""
        if "optimizer_states" not in checkpoint:
            raise UserError(f"{config.ckpt_path}: holds weights alone. Begin from them by --model.init_from")
        plan_network(config, checkpoint["hyper_parameters"].get("network", {}).get("init_args", {}))
        compare_settings(checkpoint, config)
        if config.resume:
            self._processes_before = checkpoint["callbacks"].get("TrainingRecord", {}).get("processes")
        else:
            refuse_nothing_to_do(checkpoint, config)
        self._data_state = checkpoint["DecathlonDataModule"]

    def _score(self, checkpoint: dict[str, Any], config: Namespace) -> None:
        """Validate or test."""
        refuse_another_split(checkpoint, config, str(self.subcommand))
        self._data_state = checkpoint["DecathlonDataModule"]
        self._root_before = checkpoint["datamodule_hyper_parameters"]["root"]

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """The configured Trainer, writing checkpoints whole."""
        plugins = self.config_init[self.subcommand]["trainer"]["plugins"] or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        return super().instantiate_trainer(plugins=[AtomicCheckpointIO(), *plugins], **kwargs)

    def instantiate_classes(self) -> None:
        """Build everything; a constructor that refuses its arguments refuses what the user wrote."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            # Of a setting that may be None, jsonargparse lists what each type finds wrong, and all of the value.
            reasons = [line.removeprefix("  - ") for line in str(error).splitlines() if line.startswith("  - ")]
            wrong = [reason for reason in reasons if "NoneType" not in reason]
            raise UserError("; ".join(wrong) or str(error)) from error

    def _run_subcommand(self, subcommand: str) -> None:
        """As the only one that writes into the folder of a training: its first process watches over that."""
        writes = subcommand == "fit" and self.trainer.is_global_zero
        folder = Path(self.trainer.default_root_dir)
        with only_writer(folder) if writes else nullcontext(), sigterm_before_loaders(self.trainer):
            if writes:
                self._refuse_what_another_began(folder)
            super()._run_subcommand(subcommand)

    def _refuse_what_another_began(self, folder: Path) -> None:
        """Look into the folder again: another run may have been there since it was found to be free."""
        config = self.config[self.subcommand]
        if not config.resume:
            refuse_folder_in_use(folder, config.ckpt_path)
        elif config.ckpt_path is None and find_last(folder) is not None:
            raise UserError(f"{folder}: another rare fit has trained here since this one began. Give the command again")

    def before_fit(self) -> None:
        """Begin from what is given, and say what is known to make a run slow or worse, or its scores flatter."""
        init_from = self.config[self.subcommand].model.init_from
        processes = self.trainer.num_devices * self.trainer.num_nodes  # world_size is not known before they start
        if self._processes_before not in (None, processes):
            raise UserError(
                f"--resume goes on with a run as it was begun, but {self._processes_before} process(es) shared its "
                f"steps and {processes} would now. Give as many trainer.devices and trainer.num_nodes, or a new "
                f"--run_dir and --ckpt_path {self.config[self.subcommand].ckpt_path}"
            )
        if self._data_state is not None:
            self._take_over_data()
            split, cases = self._data_state["split"], self.datamodule.task.cases
            gone = {*split["train"], *split["val"]} - {case.case_id for case in cases}
            if gone:
                raise UserError(
                    f"{self.datamodule.root}: lacks cases that the checkpoint was trained or validated with "
                    f"({few(sorted(gone))}). Go on with the same data, or begin anew with --model.init_from"
                )
        elif init_from is not None:
            earlier = begin_from(self.model.network, init_from, self.datamodule.task.classes)
            before, now = (
                earlier["DecathlonDataModule"]["preprocessing"]["spacing"],
                self.datamodule.preprocessing.spacing,
            )
            if not np.allclose(before, now, rtol=0.1):
                rank_zero_info(
                    f"{init_from} was trained with a level 0 of {format_spacing(before)} mm, which is "
                    f"{format_spacing(now)} mm now: data.spacing chooses it"
                )
            record = TrainingRecord.of(self.trainer)
            known = record.begins_from(init_from, earlier) if record else []
            self._say_what_was_seen(init_from, earlier["DecathlonDataModule"]["split"]["train"], known)
        self._say_what_is_slow()
        if "CT" in self.datamodule.task.channels and isinstance(self.datamodule.normalize, str):
            rank_zero_info(
                "Channel CT: data.normalize [low, high] keeps Hounsfield units, as [-160, 240] of soft tissue"
            )

    def _take_over_data(self) -> None:
        """What the checkpoint knows of its data: Lightning does so only after the run's split was written down."""
        self.datamodule.load_state_dict(self._data_state)

    before_validate = _take_over_data

    def before_test(self) -> None:
        """Take the cases by the checkpoint's split, and say which of other data are taken for cases of the split."""
        self._take_over_data()
        data = self.datamodule
        if self._root_before is None or Path(self._root_before).resolve() == Path(data.root).resolve():
            return
        if untested := sorted({case.case_id for case in data.task.cases} - {*data.split.test}):
            rank_zero_info(
                f"{data.root}: {len(untested)} of {len(data.task.cases)} cases are not tested, since the checkpoint's "
                f"data had cases of these names for other roles ({few(untested)}). Rename them if they are others"
            )

    def _say_what_is_slow(self) -> None:
        """Where a processor would only imitate the numbers that were asked for."""
        capabilities = getattr(torch.cpu, "get_capabilities", None)  # before 2.11, PyTorch cannot tell
        if not isinstance(self.trainer.accelerator, CPUAccelerator) or capabilities is None:
            return
        if any(has for name, has in capabilities().items() if name.endswith("bf16")):
            return
        optimizer = str(self.config[self.subcommand].model.optimizer)
        instead = ["--trainer.precision 32-true"] if "bf16" in str(self.trainer.precision) else []
        instead += ["--model.optimizer torch.optim.AdamW"] if "Muon" in optimizer else []
        if instead:
            rank_zero_info(f"This processor does not multiply bfloat16. Faster steps: {' '.join(instead)}")

    def _say_what_was_seen(self, init_from: str, trained: Sequence[str], known: Sequence[str]) -> None:
        """Where weights that the run begins from know cases that it scores.

        Args:
            init_from: Where they are from.
            trained: The cases that they were trained on last.
            known: Those that they were ever trained or validated on.
        """
        split = self.datamodule.split
        # Not those that both validate with, as all of one split are.
        seen = {*trained} & {*split.val} | {*known} & {*split.test}
        if seen:
            rank_zero_info(
                f"{init_from} was trained or validated on {len(seen)} cases that this run validates or "
                f"tests with ({few(sorted(seen))}), if what has the same id is the same. Their scores would flatter: "
                "give a data.splits_file without them"
            )

    def after_fit(self) -> None:
        """Say where everything is."""
        folder = Path(self.trainer.default_root_dir)
        kept = self.config_init[self.subcommand]["checkpoint"]
        checkpoint = Path(kept.best_model_path or folder / "checkpoints" / LAST)  # where no epoch was validated
        if self.trainer.is_global_zero and checkpoint.exists():  # it does not after trainer.fast_dev_run
            best = f", best {kept.monitor} {kept.best_model_score:.4f}" if kept.best_model_score is not None else ""
            print(f"Run folder: {folder}{best}")
            print(f"Next: rare test --ckpt_path {shlex.quote(str(checkpoint))}")

    def after_validate(self) -> None:
        """Say where the metrics are."""
        if self.trainer.is_global_zero:
            print(f"Validation metrics logged under {self.trainer.default_root_dir}/logs")

    def after_test(self) -> None:
        """Say where the report is."""
        if self.trainer.is_global_zero:
            print(
                f"Test report in {self.trainer.default_root_dir}/test: "
                "cases.csv, summary.json, slices.npz, dice_by_resolution.png, montage.png"
            )


def train(words: list[str], purpose: str) -> None:
    """Run LightningCLI.

    Args:
        words: Of the command line, the command first.
        purpose: Of the command, for its help.
    """
    strict = {"exit_on_error": False, "allow_abbrev": False}
    RareCLI(
        SegmentationModule,
        DecathlonDataModule,
        save_config_callback=RunRecord,
        save_config_kwargs={"save_to_log_dir": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
        parser_kwargs={
            **strict,
            **dict.fromkeys(RareCLI.subcommands(), strict),
            words[0]: {**strict, "description": purpose},
        },
        args=words,
    )


def _channel_count(root: str | None, download: bool | str) -> int:
    return len(_task(root, download).channels)


def _class_names(root: str | None, download: bool | str) -> list[str]:
    return list(_task(root, download).classes)


def _regions(root: str | None, download: bool | str, given: dict[str, list[int]] | None) -> dict[str, list[int]]:
    regions = regions_of(_task(root, download), given)
    return {name: list(values) for name, values in regions.items()}


def _class_count(root: str | None, download: bool | str) -> int:
    return len(_class_names(root, download))


def _task(root: str | None, download: bool | str) -> Task:
    if root is None:
        raise UserError(
            "give --data.root, the folder of a Decathlon task, or --ckpt_path to test or validate, which knows it. To "
            "try without data: rare phantom ROOT"
        )
    return find_task(root, download)
