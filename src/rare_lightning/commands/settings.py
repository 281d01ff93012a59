"""What the settings of a training must be, by themselves and beside those of a checkpoint."""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_info

from rare_lightning.checkpoint_io import find_last
from rare_lightning.configuration import changed_settings, read_checkpoint
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.random_spacing import EXACT
from rare_lightning.errors import UserError
from rare_lightning.run_folder import OF_BEGUN, run_folder, settings_of_training

ELSEWHERE = {"data.root", "data.cache_dir", "data.num_workers", "data.download"}
"""Settings that change nothing but where and how fast a run goes."""

OF_SPLIT = ("seed", "fold", "folds", "test_fraction", "splits_file")

OF_CHECKPOINT = {f"data.{name}" for name in (*OF_SPLIT, "spacing", "normalize", "foreground")} | {"model.init_from"}
"""Settings of split and preprocessing, and of the beginning: a network goes on with the cases that it knows."""

OF_DATA = {"levels": "levels", "depth": "depth", "strides": "strides", "in_channels": "root", "out_channels": "root"}
"""Arguments of a network that follow from the data, and from which of its settings."""

OF_STEPS = (
    "precision",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "limit_train_batches",
    "limit_val_batches",
    "check_val_every_n_epoch",
    "val_check_interval",
    "sync_batchnorm",
)
"""Settings of the Trainer that make other steps, or another best checkpoint."""

OF_BEST = ("monitor", "mode", "save_top_k")
"""Settings of the checkpoint that say which is the best."""

OF_LENGTH = ("max_epochs", "max_steps")
"""Settings of the Trainer that learning rates follow, unless they are constant."""


def refuse_broken_yaml(words: list[str]) -> None:
    """Name the file: jsonargparse tells the line alone.

    Raises:
        UserError: If a configuration is none.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", "-c", action="append", nargs="?", default=[])
    for name in filter(None, parser.parse_known_args(words)[0].config):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
        except OSError:  # the name of no file, but settings
            continue
        try:
            settings = yaml.safe_load(text)
        except (ValueError, yaml.YAMLError) as error:
            raise UserError(f"{path}: is no configuration ({' '.join(str(error).split())})") from error
        if not isinstance(settings, dict | None):
            raise UserError(f"{path}: is no configuration, which holds settings by name, as configs/demo.yaml")


def with_settings_of_checkpoint(words: list[str]) -> list[str]:
    """For validate and test: put the checkpoint's model and data settings before those of the command line."""
    if not words or words[0] not in ("validate", "test"):
        return words
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--ckpt_path")
    path = parser.parse_known_args(words[1:])[0].ckpt_path
    if path is None:
        return words
    checkpoint = read_checkpoint(path)
    settings = _settings_in(checkpoint)
    for section in settings.values():
        section.pop("_instantiator", None)
    root, elsewhere = settings["data"]["root"], {"--config", "--data", "--data.root", "--data.download"}
    if not Path(root).expanduser().is_dir() and elsewhere.isdisjoint(word.partition("=")[0] for word in words):
        raise UserError(f"{path}: its data are not at {root}: give --data.root, the folder of the task")
    settings["data"].pop("splits_file", None)  # the checkpoint has the split, and the file may be gone
    # What follows from the data is linked to it and not to be given; weights are the checkpoint's.
    for name in ("class_names", "regions", "window_size", "init_from"):
        settings["model"].pop(name, None)
    if "network" not in settings["model"]:
        raise UserError(f"{path}: does not say how its network is made, whose arguments are no plain values")
    for name in OF_DATA:
        settings["model"]["network"].get("init_args", {}).pop(name, None)
    return [words[0], "--config", json.dumps(settings), *words[1:]]


def _settings_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Of network and data; a checkpoint of before ``data.upsample`` was trained as with it."""
    data = {"upsample": True, **checkpoint["datamodule_hyper_parameters"]}
    return {"model": checkpoint["hyper_parameters"], "data": data}


def refuse_what_cannot_hold(config: Namespace) -> None:
    """Settings that would be overruled, or mean something else than they say."""
    root, checkpoints = config.trainer.default_root_dir, config.checkpoint.dirpath
    # The config.yaml of a run has both as they were, and may be given again.
    if (root or checkpoints) and not (root and checkpoints and Path(checkpoints) == Path(root) / "checkpoints"):
        setting = f"checkpoint.dirpath ({checkpoints})" if checkpoints else f"trainer.default_root_dir ({root})"
        raise UserError(f"{setting}: everything of a run goes into its folder. Give --run_dir instead")
    kept, filename = config.checkpoint.save_top_k, config.checkpoint.filename
    if kept not in (0, 1) and filename and "{" not in filename:
        raise UserError(
            f"checkpoint.save_top_k ({kept}): several checkpoints cannot all be called {filename}. Give names that "
            "differ, such as --checkpoint.filename '{epoch}', or leave save_top_k at 1"
        )
    if config.checkpoint.monitor is None and config.checkpoint.mode == "min":  # to Lightning, that is last.ckpt's
        raise UserError("checkpoint.mode min is of a checkpoint.monitor, which is null: leave it out")
    if config.checkpoint.mode == "max" and "loss" in (config.checkpoint.monitor or ""):
        raise UserError(
            f"checkpoint.monitor ({config.checkpoint.monitor}) is best where it is lowest: give --checkpoint.mode min"
        )
    if config.trainer.max_epochs == 0 or config.trainer.max_steps == 0:
        raise UserError("trainer.max_epochs and max_steps must leave something to train: 1 or more, or -1 for no end")
    if config.trainer.limit_train_batches == 0:
        raise UserError("trainer.limit_train_batches 0 leaves nothing to train")
    if config.trainer.accumulate_grad_batches < 1:
        raise UserError(f"trainer.accumulate_grad_batches ({config.trainer.accumulate_grad_batches}) must be 1 or more")


def refuse_nothing_to_do(checkpoint: dict[str, Any], config: Namespace) -> None:
    """Of a run that is over, whose new folder would hold nothing."""
    done = checkpoint["epoch"] + checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    for word, trained in (("epochs", done), ("steps", checkpoint["global_step"])):
        wanted = config.trainer[f"max_{word}"]
        if wanted is not None and trained >= wanted >= 0:
            raise UserError(
                f"{config.ckpt_path}: has trained {trained} {word}, and trainer.max_{word} is {wanted}: "
                "give more, or begin anew from its weights with --model.init_from"
            )


def checkpoint_to_resume(config: Namespace, subcommand: str) -> str | None:
    """The last checkpoint of the run in ``run_dir``; None where it has none yet.

    Raises:
        UserError: If the command is no training, or names no folder of a run.
    """
    if subcommand != "fit":
        raise UserError(f"--resume goes on with a training: leave it out of rare {subcommand}")
    if config.run_dir is None or config.get("ckpt_path") is not None:
        raise UserError("--resume needs --run_dir, the folder of the run, and finds the checkpoint there by itself")
    folder = Path(config.run_dir).expanduser()
    last = find_last(folder)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    # A run that is killed in its first moments has its loggers' folders, and no config.yaml yet.
    if last is None and there - OF_BEGUN and "config.yaml" not in there:
        raise UserError(f"{folder}: not the folder of a run (no config.yaml). Choose another --run_dir.")
    return None if last is None else str(last)


def plan_network(config: Namespace, trained: dict[str, Any]) -> None:
    """Tell a network whose shape follows from the data, as nnU-Net's does, the spacing and size of its input.

    Args:
        config: Of the run.
        trained: Arguments of the network that a training goes on with: its weights have the shape that was planned.

    Raises:
        UserError: If the settings of the data contradict each other.
    """
    arguments = config.model.network.init_args
    if "patch_size" not in arguments or arguments.patch_size is not None:
        return
    if trained.get("patch_size") is not None:
        arguments.spacing, arguments.patch_size = trained["spacing"], trained["patch_size"]
        return
    try:
        data = DecathlonDataModule(**{**config.data.as_dict(), "augmentation": None, "random_spacing": EXACT})
    except ValueError as error:
        raise UserError(str(error)) from error
    arguments.spacing = list(data.preprocessing.spacing)
    arguments.patch_size = list(data.typical_size())


def compare_settings(checkpoint: dict[str, Any], config: Namespace) -> None:
    """Say which settings differ from a checkpoint's and which of them hold.

    Raises:
        UserError: If the run is to be resumed, which has one set of settings.
    """
    saved = _settings_in(checkpoint)
    given = {section: config[section].as_dict() for section in saved}
    del given["model"]["regions"]  # they follow from data.regions
    written = settings_of_training(run_folder(None, config.ckpt_path))
    if {"seed_everything", "trainer", "checkpoint"} <= written.keys():  # or it is somebody else's config.yaml
        # Checkpoints do not hold these.
        names = OF_STEPS if config.model.scheduler == "constant" else (*OF_STEPS, *OF_LENGTH)
        for settings, source in ((saved, written), (given, config)):
            settings["seed_everything"] = source["seed_everything"]
            settings["trainer"] = {name: source["trainer"][name] for name in names}
            settings["checkpoint"] = {name: source["checkpoint"][name] for name in OF_BEST}
    changes = [change for change in changed_settings(saved, given) if change.name not in ELSEWHERE]
    if config.resume and changes:
        listed = "; ".join(map(str, changes))
        raise UserError(
            f"--resume goes on with a run as it was begun, but {listed}. Give what it was begun with, or a new "
            f"--run_dir and --ckpt_path {config.ckpt_path}"
        )
    for change in changes:
        holds = "checkpoint's" if change.name in OF_CHECKPOINT else "given one"
        rank_zero_info(f"{change}; the {holds} holds")


def refuse_another_split(checkpoint: dict[str, Any], config: Namespace, subcommand: str) -> None:
    """Of a command that takes the cases by the checkpoint's.

    Raises:
        UserError: If settings ask for another one.
    """
    saved = {**checkpoint["datamodule_hyper_parameters"], "splits_file": None}
    ignored = [f"data.{name}" for name in OF_SPLIT if config.data[name] != saved.get(name, config.data[name])]
    if ignored:
        raise UserError(
            f"rare {subcommand} takes the cases by the checkpoint's split, and those that it does not know for test "
            f"cases: leave out {', '.join(ignored)}"
        )
