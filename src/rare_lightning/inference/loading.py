"""What a model file holds: a network, and what scans are prepared and answered by."""

import importlib
from pathlib import Path
from typing import Any

from rare_lightning.configuration import network_weights, read_checkpoint
from rare_lightning.data.voxels import reason
from rare_lightning.errors import UserError
from rare_lightning.inference.export import open_exported, sidecar_of
from rare_lightning.inference.mirroring import flipped_axes
from rare_lightning.networks import MultiResolutionNetwork

MIRROR_AXES = "mirror_axes"


def load_model(path: str | Path) -> tuple[MultiResolutionNetwork, dict[str, Any]]:
    """Network of a checkpoint or an export in evaluation mode, and what must be alike in an ensemble.

    Raises:
        UserError: If the file is neither, or its network cannot be built.
    """
    sidecar = sidecar_of(path)
    if sidecar is not None:
        return open_exported(sidecar)
    checkpoint = read_checkpoint(path)
    data, settings = checkpoint["DecathlonDataModule"], checkpoint["hyper_parameters"]
    facts = {name: data[name] for name in ("channels", "classes", "level_strides", "preprocessing")}
    facts["window_size"] = settings["window_size"]
    facts[MIRROR_AXES] = flipped_axes(checkpoint["datamodule_hyper_parameters"].get("augmentation"))
    try:
        module, _, name = settings["network"]["class_path"].rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if not (isinstance(kind, type) and issubclass(kind, MultiResolutionNetwork)):  # or any function could be called
            raise TypeError(f"{module}.{name} is not a MultiResolutionNetwork")
        network: MultiResolutionNetwork = kind(**settings["network"]["init_args"])
        network.load_state_dict(network_weights(checkpoint))
    except Exception as error:
        where = "; PYTHONPATH must name its folder" if isinstance(error, ModuleNotFoundError) else ""
        raise UserError(f"{path}: its network cannot be built ({reason(error)}){where}") from error
    facts["answer_grid"] = network.answer_grid
    return network.eval(), facts
