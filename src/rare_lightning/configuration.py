"""What a checkpoint keeps of how its objects were made: class paths and arguments, never pickled objects."""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from rare_lightning.errors import UserError
from rare_lightning.models import find_checkpoint, model_names

CHECKPOINT_PARTS = ("state_dict", "hyper_parameters", "datamodule_hyper_parameters", "DecathlonDataModule")
PLAIN = (str, int, float, bool, type(None))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Content of a checkpoint, with all parts that ``rare fit`` writes.

    Args:
        path: Of the file, or the name of a model that comes with the package.

    Raises:
        UserError: If there is no such file, or it is something else.
    """
    path = find_checkpoint(path)
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and no checkpoint; those of a run are in its folder checkpoints")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        missing = [part for part in CHECKPOINT_PARTS if part not in checkpoint]
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such checkpoint, nor a model of rare models ({', '.join(model_names())})"
        ) from error
    except Exception as error:  # whatever unpickling foreign bytes raises
        raise UserError(f"{path}: not a checkpoint of rare fit, or damaged ({type(error).__name__})") from error
    if missing:
        raise UserError(f"{path}: not a checkpoint of rare fit (without {', '.join(missing)})")
    return checkpoint


def network_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Weights of a checkpoint's network, by their names in it."""
    prefix = "network."
    weights = checkpoint["state_dict"].items()
    return {name.removeprefix(prefix): weight for name, weight in weights if name.startswith(prefix)}


def begin_from(network: nn.Module, checkpoint: str | Path, classes: Sequence[str]) -> dict[str, Any]:
    """Give a network the weights of a checkpoint's that have its names and shapes, and say which it keeps of its own.

    Args:
        network: To train on; its heads are its own for other classes, its first convolution for other channels.
        checkpoint: File, or the name of a model that comes with the package.
        classes: Of the task, in the order of the label values. With others than the checkpoint's, or in another order,
            heads are the network's own even where they have as many.

    Returns:
        The checkpoint's content.

    Raises:
        UserError: If it is none, or most do not fit.
    """
    content = read_checkpoint(checkpoint)
    saved = network_weights(content)
    own = network.state_dict()
    fitting = {name: saved[name] for name in own if name in saved and saved[name].shape == own[name].shape}
    if content["DecathlonDataModule"]["classes"] != list(classes):
        for name in fitting.keys() & _of_classes(network):
            del fitting[name]
    if len(fitting) < len(own) / 2:
        described = (content["hyper_parameters"].get("network"), _describe(network))
        # By its last word, since rare_lightning.RAREUNet is rare_lightning.networks.RAREUNet too.
        before, now = (
            {**one, "class_path": one["class_path"].rpartition(".")[2]} if isinstance(one, dict) else {}
            for one in described
        )
        changes = changed_settings(before, now, "model.network.")
        differing = [str(change) for change in changes if not change.name.endswith("_channels")]  # which may differ
        raise UserError(
            f"{checkpoint}: only {len(fitting)} of its {len(saved)} weights fit the network"
            f"{' (' + '; '.join(differing) + ')' if differing else ''}. "
            "Give what it was trained with, and its data.levels and data.depth"
        )
    network.load_state_dict(fitting, strict=False)
    others = sorted(own.keys() - fitting.keys())
    rank_zero_info(f"Weights of {checkpoint}, {'but for ' + ', '.join(others) if others else 'all of them'}")
    return content


def _of_classes(network: nn.Module) -> set[str]:
    """Names of the weights whose shapes follow from the number of classes."""
    arguments = getattr(network, "init_args", {})
    if "out_channels" not in arguments:
        return set()
    with torch.device("meta"):
        other = type(network)(**{**arguments, "out_channels": arguments["out_channels"] + 1})
    own = network.state_dict()
    return {name for name, weight in other.state_dict().items() if weight.shape != own[name].shape}


class Change(NamedTuple):
    """A setting that is not what it was."""

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        """Name and both values."""
        return f"{self.name} is {self.now} and was {self.before}"


def changed_settings(before: dict[str, Any], now: dict[str, Any], within: str = "") -> list[Change]:
    """Settings that both have and that differ, by their dotted names."""
    changes = []
    for key in before.keys() & now.keys():
        name = f"{within}{key}"
        if isinstance(before[key], dict) and isinstance(now[key], dict):
            changes += changed_settings(before[key], now[key], f"{name}.")
        elif json.dumps(before[key]) != json.dumps(now[key]):  # to which a tuple is a list
            changes.append(Change(name, before[key], now[key]))
    return sorted(changes)


def keep_plain_hyperparameters(component: HyperparametersMixin) -> None:
    """Make saved hyper-parameters readable by ``torch.load(weights_only=True)`` and enough to build the object again.

    LightningCLI gives them as class paths and arguments already. Objects that were built in Python are brought to the
    same form; those that do not tell plain ``init_args`` are left out, so that the constructor's default or a keyword
    of ``load_from_checkpoint`` stands in.
    """
    if "_instantiator" in component.hparams:
        return
    described = {name: _describe(value) for name, value in component.hparams.items()}
    for name, value in described.items():
        if value is NotImplemented:
            del component.hparams[name]
        else:
            component.hparams[name] = value
    component.hparams["_instantiator"] = "lightning.pytorch.cli.instantiate_module"


def _describe(value: Any) -> Any:
    """Plain form of a value; NotImplemented if it has none."""
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        items = [_describe(item) for item in value]
        return NotImplemented if any(item is NotImplemented for item in items) else items
    if isinstance(value, dict):
        entries = {key: _describe(entry) for key, entry in value.items()}
        return NotImplemented if NotImplemented in entries.values() else entries
    if isinstance(value, type):
        return {"class_path": _path(value)}
    kind, arguments = type(value), getattr(value, "init_args", None)
    if isinstance(value, partial) and isinstance(value.func, type) and not value.args:
        kind, arguments = value.func, value.keywords
    if not isinstance(arguments, dict):
        return NotImplemented
    described = {name: _describe(argument) for name, argument in arguments.items()}
    if any(argument is NotImplemented for argument in described.values()):
        return NotImplemented
    return {"class_path": _path(kind), "init_args": described}


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
