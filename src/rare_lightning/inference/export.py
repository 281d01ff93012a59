"""Networks as files of other inference engines, one per level, and running those files."""

import hashlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from os import replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rare_lightning.errors import UserError, require
from rare_lightning.files import write_json
from rare_lightning.models import find_checkpoint
from rare_lightning.networks import MultiResolutionNetwork, Prediction, Pyramid
from rare_lightning.networks.grids import Grid, Size3, cells

Format = Literal["onnx", "openvino", "torchscript"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "torchscript": ".pt"}
SIDECAR = "model.json"
AXES = {0: "batch", 2: "depth", 3: "height", 4: "width"}
NOISE_SIZES: list[Size3] = [(43, 57, 38), (37, 50, 23), (64, 48, 80)]  # odd ones, that none is taken for a constant
TOLERANCE = 1e-3  # of a probability, between an exported network and the one it was made of


class LevelNetwork(nn.Module):
    """A network at one entry level: image tensor in, logits out.

    Args:
        network: Knows the level.
        level: Entry level.
    """

    def __init__(self, network: MultiResolutionNetwork, level: int) -> None:
        super().__init__()
        self.network = network
        self.level = level

    def forward(self, image: Tensor) -> Tensor:
        """``(B, C_in, D_l, H_l, W_l)`` to logits on the grid that the network answers on."""
        logits: Tensor = self.network({self.level: image}).logits[self.level]
        return logits


class EngineNetwork(MultiResolutionNetwork):
    """A network that something else than PyTorch's eager mode runs, one level at a time.

    Args:
        run: Level -> image ``(B, C_in, D_l, H_l, W_l)`` to logits.
        forward_bytes: Level -> bytes per base voxel that a forward needs.
        strides: Cumulative stride of every level.
        coarsest_stride: As of every network.
        answer_grid: As of every network.
    """

    def __init__(
        self,
        run: dict[int, Callable[[Tensor], Tensor]],
        forward_bytes: dict[int, float],
        strides: dict[int, Size3],
        coarsest_stride: Size3,
        answer_grid: Grid,
    ) -> None:
        super().__init__()
        self.run = run
        self.forward_bytes = forward_bytes
        self.strides = strides
        self.levels = tuple(sorted(run))
        self.coarsest_stride = coarsest_stride
        self.answer_grid = answer_grid

    def level_stride(self, level: int) -> Size3:
        """Voxel size of a level in base voxels, per axis."""
        return self.strides[level]

    def forward(self, images: Pyramid) -> Prediction:
        """Level -> ``(B, C_in, D_l, H_l, W_l)`` to logits by level."""
        return Prediction({level: self.run[level](image) for level, image in images.items()}, {}, {})


def open_exported(path: Path) -> tuple[EngineNetwork, dict[str, Any]]:
    """Exported files as a network, run on the CPU unless their engine finds something faster, and the model's facts.

    Args:
        path: The sidecar ``model.json``.

    Raises:
        UserError: If it or a file it names cannot be read, or the engine is not installed.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        facts: dict[str, Any] = content["model"]
        entries = {int(level): entry for level, entry in content["levels"].items()}
        files = {level: path.parent / entry["file"] for level, entry in entries.items()}
        needed = {level: float(entry["forward_bytes"]) for level, entry in entries.items()}
        strides = {level: (x, y, z) for level, (x, y, z) in enumerate(facts["level_strides"])}
        x, y, z = content["coarsest_stride"]
        opened, answer_grid = OPEN[content["format"]], facts["answer_grid"]
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such file; rare export writes it. Of a run folder, give checkpoints/best.ckpt"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not written by rare export ({type(error).__name__}: {error})") from error
    run = {level: opened(file) for level, file in files.items()}
    return EngineNetwork(run, needed, strides, (x, y, z), answer_grid), facts


def export_network(
    network: MultiResolutionNetwork,
    facts: dict[str, Any],
    forward_bytes: dict[int, float],
    folder: Path,
    format: Format,
    levels: Sequence[int],
) -> dict[int, float]:
    """Write a file per level, and ``model.json`` with what preprocessing needs. Sizes stay free.

    Args:
        network: In evaluation mode, on the CPU.
        facts: Plain values that describe the model, see :class:`~rare_lightning.inference.Segmenter`.
        forward_bytes: Level -> bytes per base voxel that a forward needs.
        folder: Where to write. Files appear whole, the sidecar last.
        format: Of the files.
        levels: Which entries to export.

    Returns:
        Level -> largest difference of a probability between the exported network and this one, on two images of
        random size and noise.

    Raises:
        UserError: If the engine is not installed, or a difference exceeds 0.001.
    """
    suffix = SUFFIXES[format]
    differences, entries = {}, {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as temporary:
        for level in levels:
            file = Path(temporary, f"level_{level}{suffix}")
            module = LevelNetwork(network, level).eval()
            channels = len(facts["channels"])
            example, *others = (_noise(network, level, channels, size) for size in NOISE_SIZES)
            write(format, module, example, file)
            run = OPEN[format](file)
            differences[level] = max(_difference(module, run, image) for image in others)
            if differences[level] > TOLERANCE:
                raise UserError(
                    f"level {level} as {format} gives other probabilities, by up to {differences[level]:.2g}: not "
                    "exported. Please report this network"
                )
            entries[level] = {
                "file": file.name,
                "forward_bytes": forward_bytes[level],
                "largest_difference": differences[level],
            }
        sidecar = {
            "format": format,
            "input": "image, float32 (batch, channels, depth, height, width) on the level grid, preprocessed",
            "output": "logits, float32 (batch, classes, depth, height, width)",
            "model": facts,
            "coarsest_stride": list(network.coarsest_stride),
            "levels": entries,
        }
        write_json(sidecar, Path(temporary, SIDECAR))
        for written in sorted(Path(temporary).iterdir(), key=lambda path: path.name == SIDECAR):
            replace(written, folder / written.name)
    return differences


def sidecar_of(path: str | Path) -> Path | None:
    """The sidecar that a path means: itself, that of its folder, or the one beside an exported file."""
    path = Path(path).expanduser()
    if path.is_dir():
        return path / SIDECAR
    if path.suffix == ".json":
        return path
    beside = path.parent / SIDECAR
    return beside if path.suffix in SUFFIXES.values() and beside.exists() else None


def digest(path: str | Path) -> str:
    """What tells the files of a model from those of any other, whatever they are called.

    Args:
        path: Of a checkpoint or an exported model that can be read, as given.
    """
    sidecar = sidecar_of(path)
    # With the weights that some engines keep in a file of their own.
    files = [find_checkpoint(path)] if sidecar is None else [sidecar, *sorted(sidecar.parent.glob("level_*"))]
    found = hashlib.sha256()
    for name in files:
        with name.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()[:12]


def write(format: Format, module: nn.Module, example: Tensor, path: Path) -> None:
    """Write a module that takes one image ``(B, C, D, H, W)``, whose sizes all stay free but the channels.

    Raises:
        UserError: If the engine is not installed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporters warn of their own deprecations and of tracing
        WRITE[format](module, example, path)


def _write_onnx(module: nn.Module, example: Tensor, path: Path) -> None:
    require("onnx", "onnx", "onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    torch.onnx.export(
        module, (example,), path, dynamo=True, external_data=False, verbose=False,
        input_names=["image"], output_names=["logits"], dynamic_shapes={"image": AXES},
    )  # fmt: skip


def _write_openvino(module: nn.Module, example: Tensor, path: Path) -> None:
    [openvino] = require("openvino", "openvino")
    shape = openvino.PartialShape([-1, example.shape[1], -1, -1, -1])
    model = openvino.convert_model(module, example_input=(example,), input=[shape])
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_torchscript(module: nn.Module, example: Tensor, path: Path) -> None:
    traced = torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, path)


def _open_onnx(path: Path) -> Callable[[Tensor], Tensor]:
    [onnxruntime] = require("onnx", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = _opened(path, lambda: onnxruntime.InferenceSession(
        path, options, providers=onnxruntime.get_available_providers()
    ))  # fmt: skip
    return lambda image: torch.from_numpy(session.run(None, {"image": image.cpu().numpy()})[0])


def _open_openvino(path: Path) -> Callable[[Tensor], Tensor]:
    [openvino] = require("openvino", "openvino")
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = _opened(path, lambda: _openvino_core(openvino).compile_model(path, "CPU", settings))

    def run(image: Tensor) -> Tensor:
        advice = "OpenVINO cannot run it, as where an axis is too thin for it; take the checkpoint or an onnx export"
        try:
            logits = model(image.cpu().numpy())[0]
        except RuntimeError as error:
            raise ValueError(advice) from error
        if logits.size == 0:  # by shape, it either fails to pool an axis of one voxel or pools it to none
            raise ValueError(advice)
        return torch.from_numpy(logits.copy())  # of a buffer that the next run overwrites

    return run


@cache
def _openvino_core(openvino: ModuleType) -> Any:
    """One for the whole process.

    On CPUs with AMX each core gives the thread a stack for signal handlers, and where several end in the order they
    began, the last puts back one that is freed: the next signal, of a data loader's worker, would end the process.
    """
    return openvino.Core()


def _open_torchscript(path: Path) -> Callable[[Tensor], Tensor]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module: Callable[[Tensor], Tensor] = _opened(path, lambda: torch.jit.load(path))  # type: ignore[no-untyped-call]
    return module


WRITE = {"onnx": _write_onnx, "openvino": _write_openvino, "torchscript": _write_torchscript}
OPEN = {"onnx": _open_onnx, "openvino": _open_openvino, "torchscript": _open_torchscript}


def _opened(path: Path, read: Callable[[], Any]) -> Any:
    if not path.exists():
        raise UserError(f"{path}: no such file; export it with rare export")
    try:
        return read()
    except Exception as error:  # whatever an engine raises at foreign bytes
        raise UserError(f"{path}: cannot be opened ({type(error).__name__}); export it again") from error


def _noise(network: MultiResolutionNetwork, level: int, channels: int, size: Size3) -> Tensor:
    """Image on the level grid for a base grid of that size, or as much more as a deep network needs."""
    enough = [n + max(0, coarsest - 16) for n, coarsest in zip(size, network.coarsest_stride, strict=True)]
    shape = cells(enough, network.level_stride(level))
    return torch.randn(1, channels, *shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _difference(module: nn.Module, run: Callable[[Tensor], Tensor], image: Tensor) -> float:
    mine, other = module(image), run(image)
    if mine.shape != other.shape:
        raise UserError(f"an exported network answers with {tuple(other.shape)} instead of {tuple(mine.shape)}")
    return float((mine.softmax(dim=1) - other.softmax(dim=1)).abs().max())
