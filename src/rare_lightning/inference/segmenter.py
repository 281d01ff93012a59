"""A trained model that segments any scan at the level its spacing asks for, and answers on the scan's own grid."""

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import SimpleITK as sitk
import torch
import torchio as tio
from torch import Tensor

from rare_lightning.data.cropping import Box, content_box
from rare_lightning.data.geometry import Geometry, format_spacing, geometry_of_affine, level_affine
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.resampling import covering_size, resample, resample_in_slabs
from rare_lightning.data.routing import Route, RoutingStrategy, route
from rare_lightning.data.scans import Scan, ScanFiles, read_scan, refuse_non_finite
from rare_lightning.data.voxels import channels_of, reason
from rare_lightning.errors import UserError
from rare_lightning.inference.export import EngineNetwork
from rare_lightning.inference.loading import MIRROR_AXES, load_model
from rare_lightning.inference.memory import GIB, LIBRARIES, forward_bytes, total_memory
from rare_lightning.inference.mirroring import mirror_images
from rare_lightning.inference.windows import fit_window, segment_level
from rare_lightning.networks import MultiResolutionNetwork
from rare_lightning.networks.grids import Size3, pad_to_size, round_up, triple

Precision = Literal["32-true", "bf16-mixed"]
NO_FLIPS = (
    "tells of no axis that its training flipped (torchio.RandomFlip in data.augmentation), and in other mirror images "
    "its classes may trade places: leave out mirror"
)


@dataclass(frozen=True)
class Prepared:
    """A scan ready for the network.

    Attributes:
        image: ``(C, d, h, w)`` float32 on the level grid, normalised and padded at its far end.
        size: Of the level grid before padding.
        box: What of the scan it holds, along the canonical axes: all but the empty space around.
        route: Where it enters.
        geometry: Of the scan.
    """

    image: Tensor
    size: Size3
    box: Box
    route: Route
    geometry: Geometry

    def __getstate__(self) -> dict[str, Any]:
        """The image as an array: tensors go to other processes by shared memory.

        Containers have little of it, and where an image does not fit, the receiving process waits for ever.
        """
        return {**self.__dict__, "image": self.image.numpy()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A tensor again."""
        self.__dict__.update(state, image=torch.from_numpy(state["image"]))


@dataclass(frozen=True)
class Segmentation:
    """An answer.

    Attributes:
        labels: ``(D, H, W)`` uint8 along the axes of its geometry.
        geometry: The scan's own, or the base grid in canonical orientation.
        volumes_ml: Volume of each foreground class in ml.
        route: Where the scan entered.
        window: Base voxels per axis of the windows it was segmented in, None if whole.
        probabilities: ``(C, D, H, W)`` float32 on the same grid, if they were asked for.
    """

    labels: np.ndarray
    geometry: Geometry
    volumes_ml: dict[str, float]
    route: Route
    window: list[int] | None = None
    probabilities: np.ndarray | None = None


class Segmenter:
    """Segments scans with the network of a checkpoint, or the mean of several networks' softmax.

    Args:
        checkpoints: Written by ``rare fit`` or ``rare export``; all for the same channels, classes and preprocessing.
        routing: How the entry level is chosen, see :func:`~rare_lightning.data.routing.route`.
        mirror: Average over the answers to the scan and its mirror images, along the axes that training flipped
            (``torchio.RandomFlip``): twice the work for each.
        device: Where to run.
        memory: GiB that may be used for it; three quarters of what the device has if None. A scan that would need
            more is segmented in windows.
        precision: As of Lightning's Trainer. Convolutions in bfloat16 take half the time on devices that multiply it;
            what is done before and after them stays in float32.

    Raises:
        UserError: If a file is not a checkpoint of ``rare fit``, the checkpoints do not belong together, are to see
            mirror images and were trained on none, or to be mixed in precision and were exported; or there is no such
            device, routing or precision.
    """

    def __init__(
        self,
        checkpoints: str | Path | Sequence[str | Path],
        routing: RoutingStrategy = "detail",
        mirror: bool = False,
        device: str | torch.device = "cpu",
        memory: float | None = None,
        precision: Precision = "32-true",
    ) -> None:
        if memory is not None and memory <= 0:
            raise UserError(f"memory ({memory:g} GiB) must be positive")
        for word, value, known in (
            ("precision", precision, get_args(Precision)),
            ("routing", routing, get_args(RoutingStrategy)),
        ):
            if value not in known:
                raise UserError(f"{word} ({value}) must be one of {', '.join(known)}")
        paths = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
        if not paths:
            raise UserError("there is no checkpoint to load")
        models = [load_model(path) for path in paths]
        self.facts = facts = models[0][1]
        for path, (network, other) in zip(paths, models, strict=True):
            if precision != "32-true" and isinstance(network, EngineNetwork):
                raise UserError(f"{path}: was exported in full precision; {precision} is for checkpoints of rare fit")
            if mirror and not other.get(MIRROR_AXES):
                raise UserError(f"{path}: {NO_FLIPS}")
            alike = facts.keys() - (() if mirror else {MIRROR_AXES})
            differing = ", ".join(sorted(name for name in alike if other.get(name) != facts[name]))
            if differing:
                raise UserError(f"{path}: cannot be averaged with {paths[0]}, they differ in {differing}")
        try:
            self.networks = [network.to(device) for network, _ in models]
        except (RuntimeError, AssertionError) as error:  # torch's, of a name or a device that there is not
            raise UserError(f"device {device}: {reason(error)}") from error
        self.channels: list[str] = facts["channels"]
        self.classes: list[str] = facts["classes"]
        # An exported model may have some of the levels only.
        self.level_strides: dict[int, Size3] = {
            level: self.networks[0].level_stride(level)
            for level in self.networks[0].levels
            if all(level in network.levels for network in self.networks)
        }
        if not self.level_strides:
            raise UserError(f"{', '.join(map(str, paths))}: cannot be averaged, they have no entry level in common")
        self.preprocessing = Preprocessing.from_dict(facts["preprocessing"])
        self.window_size: list[int] | None = facts["window_size"]
        # Scans are prepared where there are no networks.
        self.coarsest_stride = _largest(network.coarsest_stride for network in self.networks)
        self.routing: RoutingStrategy = routing
        self.mirror = mirror
        self.memory = memory
        self.precision: Precision = precision
        self.processes = 1  # that share the memory of the CPU
        self._bytes_of_level: dict[int, float] = {}

    def __call__(
        self,
        image: str | Path | Sequence[str | Path] | sitk.Image | tio.ScalarImage,
        level: int | None = None,
        probabilities: bool = False,
    ) -> sitk.Image | tio.LabelMap | tio.ScalarImage:
        """Segment a file, a ``SimpleITK.Image`` or a ``torchio.ScalarImage``.

        Args:
            image: 3D; channels as a fourth dimension, as components of a voxel, or as a file each.
            level: Enter here, whatever the spacing.
            probabilities: Answer with the probability of every class.

        Returns:
            The label map on the same grid: for paths or a ``SimpleITK.Image`` a ``SimpleITK.Image`` (uint8), for a
            ``torchio.ScalarImage`` a ``torchio.LabelMap``. Of probabilities, a ``SimpleITK.Image`` with a component for
            each class, or a ``torchio.ScalarImage`` with a channel for each.

        Raises:
            UserError: If the scan cannot be read, or has another number of channels than the model.
            TypeError: If it is something else, such as an array, which tells nothing of its spacing.
        """
        if isinstance(image, tio.Image):
            lps, name = geometry_of_affine(image.affine, image.spatial_shape), str(image.path or "image")
            scan = Scan(image.numpy(), lps)
            refuse_non_finite(scan.array, name)
            answer = self.segment(self.prepare(scan, name, level), keep_probabilities=probabilities)
            if answer.probabilities is not None:
                return tio.ScalarImage(tensor=np.ascontiguousarray(answer.probabilities), affine=image.affine)
            return tio.LabelMap(tensor=torch.as_tensor(answer.labels)[None], affine=image.affine)
        if isinstance(image, sitk.Image):
            scan, name = Scan(np.stack(channels_of(image, "image")), Geometry.of(image)), "image"
            refuse_non_finite(scan.array, name)
        elif (files := _as_list(image)) and all(isinstance(path, (str, Path)) for path in files):
            paths = tuple(Path(path).expanduser() for path in files)
            scan, name = read_scan(ScanFiles(paths[0].name, paths)), str(paths[0])
        else:
            raise TypeError(
                f"{type(image).__name__} is no scan with a spacing: give a path, a list with a path for each channel, "
                "a SimpleITK.Image or a torchio.ScalarImage, such as ScalarImage(tensor=..., affine=...)"
            )
        answer = self.segment(self.prepare(scan, name, level), keep_probabilities=probabilities)
        if answer.probabilities is not None:
            return sitk.Compose([answer.geometry.stamp(of_class) for of_class in answer.probabilities])
        return answer.geometry.stamp(answer.labels)

    def run_by(self, network: MultiResolutionNetwork) -> "Segmenter":
        """This segmenter with another network in place of its own, for scans that enter at one of its levels."""
        other = copy(self)
        other.networks = [network]
        other.level_strides = {level: network.level_stride(level) for level in network.levels}
        other._bytes_of_level = {}
        return other

    def prepare(self, scan: Scan, name: str, level: int | None = None) -> Prepared:
        """Route a scan and bring it to the grid of its level.

        Raises:
            UserError: If it has another number of channels than the model, shows nothing, is too large for the memory,
                or there is no such level.
        """
        if len(scan.array) != len(self.channels):
            fewer = (
                ". Files of one channel each are called NAME_0000, NAME_0001, ..., or are listed in a CSV file, "
                "image,image2,..."
            )
            raise UserError(
                f"{name}: has {len(scan.array)} channel(s), the model needs {len(self.channels)} "
                f"({', '.join(self.channels)}){fewer if len(scan.array) < len(self.channels) else ''}"
            )
        if all(channel.min() == channel.max() for channel in scan.array):
            raise UserError(f"{name}: shows nothing, every voxel of a channel has the same value")
        geometry = scan.geometry
        spacing, base = geometry.canonical_spacing, self.preprocessing.spacing
        try:
            chosen = route(spacing, base, self.level_strides, self.routing, level)
        except ValueError as error:
            raise UserError(f"{name}: {error}") from error
        volume = torch.from_numpy(scan.canonical)
        box = self._content_box(volume, spacing)
        volume = volume[:, *box]
        size = covering_size(volume.shape[1:], spacing, chosen.spacing)
        # Of a header that means micrometres, before room is made for all its voxels.
        if 4 * len(volume) * prod(size) > total_memory(torch.device("cpu")):
            raise UserError(
                f"{name}: at level {chosen.level} it would have {'x'.join(map(str, size))} voxels, more than fit into "
                f"the memory. {_extent(geometry)}"
            )
        volume, shown = self.preprocessing.shown(volume, spacing, chosen.spacing)
        statistics = self.preprocessing.statistics(volume)
        image = self.preprocessing.rescaled(resample(volume, shown, chosen.spacing, size), *statistics)
        return Prepared(pad_to_size(image, self.padded_size(chosen.level, size)), size, box, chosen, geometry)

    def padded_size(self, level: int, size: Sequence[int]) -> Size3:
        """Voxels of a level that hold so many, and whole voxels of the deepest level, be it exported or not."""
        stride, deepest = self.level_strides[level], self.facts["level_strides"][-1]
        return round_up(size, [whole // part for whole, part in zip(deepest, stride, strict=True)])

    def window(self, prepared: Prepared, keep_probabilities: bool = False) -> list[int] | None:
        """Base voxels per axis of the windows to segment a scan in; None for the whole.

        Networks that were trained on patches get windows of that size, others the whole scan; and either smaller
        windows, if the memory does not allow those.

        Args:
            prepared: The scan.
            keep_probabilities: As of :meth:`segment`.

        Raises:
            UserError: If the memory does not even allow the smallest windows.
        """
        level, device = prepared.route.level, self._device
        stride, smallest = self.level_strides[level], _largest(network.smallest_input for network in self.networks)
        size = [n * s for n, s in zip(prepared.image.shape[1:], stride, strict=True)]
        sharing = self.processes if device.type == "cpu" else 1
        memory = 0.75 * total_memory(device) / sharing if self.memory is None else self.memory * GIB
        answer_voxels = prod(size if self.networks[0].answer_grid == "base" else prepared.image.shape[1:])
        answers = 2 if self.mirror or len(self.networks) > 1 else 1
        # The scan and its copy on the level grid, softmax maps, and the windows' weights.
        kept = 8 * prepared.image.numel() + 4 * answer_voxels * (answers * len(self.classes) + 1)
        if keep_probabilities:  # on the grid of the answer, and once more while they are written
            kept += 8 * len(self.classes) * max(prod(prepared.geometry.size), answer_voxels)
        per_voxel = self.forward_bytes(level)
        voxels = (memory - LIBRARIES - kept) / per_voxel
        run = _largest([self.window_size or size, smallest])
        if prod(run) <= voxels:
            return self.window_size
        try:
            return list(fit_window(run, self.coarsest_stride, smallest, voxels))
        except ValueError as error:
            least = (LIBRARIES + kept + per_voxel * prod(smallest)) / GIB
            deeper = "" if self.networks[0].answer_grid == "base" else ", or enter at a deeper --level"
            raise UserError(
                f"needs {least:.1f} GiB of memory at level {level}, {kept / GIB:.1f} of it for the scan and the "
                f"probabilities of {len(self.classes)} classes, and may use {memory / GIB:.1f}: raise --memory{deeper}"
                f". {_extent(prepared.geometry)}"
            ) from error

    @torch.inference_mode()
    def probabilities(self, prepared: Prepared, window: list[int] | None = None) -> Tensor:
        """Softmax ``(C, D, H, W)``, on the base grid or the level grid as the network answers.

        Args:
            prepared: The scan.
            window: As :meth:`window` has it; None runs the scan whole.
        """
        mean: Tensor | None = None
        flips = mirror_images(self.facts[MIRROR_AXES] if self.mirror else [])
        for network in self.networks:
            device = _device_of(network)  # an exported one stays on the CPU
            image = prepared.image[None].to(device)
            for axes in flips:
                seen = image.flip(axes) if axes else image  # an empty flip would copy
                with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16-mixed"):
                    logits = segment_level(network, prepared.route.level, seen, window).float()
                # In place, and none kept longer than needed: softmax maps of whole scans are what fills the memory.
                torch.softmax(logits, dim=1, out=logits)
                softmax = (logits.flip(axes) if axes else logits)[0].to(self._device)
                mean = softmax if mean is None else mean.add_(softmax)
                del logits, softmax
        if mean is None:
            raise ValueError("there is no network")
        answers = len(self.networks) * len(flips)
        return mean if answers == 1 else mean.div_(answers)

    def segment(self, prepared: Prepared, on_base_grid: bool = False, keep_probabilities: bool = False) -> Segmentation:
        """Run the network, and bring the answer to the scan's own grid or to the base grid.

        Args:
            prepared: The scan.
            on_base_grid: Answer at the base spacing in canonical orientation.
            keep_probabilities: Bring every class's probability there too, which takes memory.

        Raises:
            UserError: If the scan is too small for the network, or the memory for the scan.
        """
        window = self.window(prepared, keep_probabilities)
        try:
            answer = self.probabilities(prepared, window)
        except ValueError as error:
            raise UserError(f"{error}. {_extent(prepared.geometry)}") from error
        return self.restore(answer, prepared, window, on_base_grid, keep_probabilities)

    def restore(
        self,
        answer: Tensor,
        prepared: Prepared,
        window: list[int] | None,
        on_base_grid: bool = False,
        keep_probabilities: bool = False,
    ) -> Segmentation:
        """Bring :meth:`probabilities` to the scan's own grid or to the base grid, and take the likeliest class."""
        answer_spacing: Sequence[float] = prepared.route.spacing
        size = list(prepared.size)
        if self.networks[0].answer_grid == "base":
            stride = self.level_strides[prepared.route.level]
            answer_spacing = [mm / s for mm, s in zip(prepared.route.spacing, stride, strict=True)]
            size = [n * s for n, s in zip(size, stride, strict=True)]
        answer = answer[:, : size[0], : size[1], : size[2]]
        geometry, box = prepared.geometry, prepared.box
        spacing, wanted = geometry.canonical_spacing, geometry.canonical_size
        if on_base_grid:
            geometry, box = _base_grid(geometry, box, self.preprocessing.spacing)
            spacing, wanted = self.preprocessing.spacing, geometry.size
        shape = triple(side.stop - side.start for side in box)
        labels = np.zeros(wanted, dtype=np.uint8)
        kept = np.zeros((len(self.classes), *wanted), dtype=np.float32) if keep_probabilities else None
        if kept is not None:
            kept[0] = 1  # the empty space
        counts = np.zeros(len(self.classes), dtype=np.int64)
        for where, slab in resample_in_slabs(answer, answer_spacing, spacing, shape, order=1):
            place = (slice(box[0].start + where.start, box[0].start + where.stop), *box[1:])
            labels[place] = slab.max(dim=0).indices.to(torch.uint8).cpu().numpy()
            if kept is not None:
                kept[:, *place] = slab.cpu().numpy()
            counts += np.bincount(labels[place].ravel(), minlength=len(self.classes))
        if not on_base_grid:
            labels = np.ascontiguousarray(geometry.from_canonical(labels))
            if kept is not None:  # as a view: a copy of all classes would take as much memory again
                kept = np.moveaxis(geometry.from_canonical(np.moveaxis(kept, 0, -1)), -1, 0)
        voxel_ml = float(np.prod(spacing)) / 1000
        volumes = {name: float(counts[i]) * voxel_ml for i, name in enumerate(self.classes) if i > 0}
        return Segmentation(labels, geometry, volumes, prepared.route, window, kept)

    def _content_box(self, volume: Tensor, spacing: Sequence[float]) -> Box:
        """All but the empty space around what a scan shows; the whole scan, where that is too small for the network."""
        box = content_box(volume)
        base = self.preprocessing.spacing
        extents = [(side.stop - side.start) * mm for side, mm in zip(box, spacing, strict=True)]
        least = [s * mm for s, mm in zip(self.coarsest_stride, base, strict=True)]
        if any(extent > enough for extent, enough in zip(extents, least, strict=True)):
            return box
        return triple(slice(0, n) for n in volume.shape[1:])

    @property
    def _device(self) -> torch.device:
        """Where answers are averaged."""
        return _device_of(self.networks[0])

    def forward_bytes(self, level: int) -> float:
        """Bytes per base voxel that a network needs at a level: the largest of an ensemble, which run in turns."""
        if level not in self._bytes_of_level:
            self._bytes_of_level[level] = max(
                network.forward_bytes[level]
                if isinstance(network, EngineNetwork)
                else forward_bytes(network, level, len(self.channels))
                for network in self.networks
            )
        return self._bytes_of_level[level]


def _as_list(image: Any) -> list[Any]:
    return list(image) if isinstance(image, (list, tuple)) else [image]


def _device_of(network: MultiResolutionNetwork) -> torch.device:
    parameter = next(network.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _largest(sizes: Iterable[Sequence[int]]) -> Size3:
    """Along each axis."""
    return triple(max(along) for along in zip(*sizes, strict=True))


def _extent(geometry: Geometry) -> str:
    """Of a scan, for those whose spacing is not what it should be."""
    covered = [n * mm for n, mm in zip(geometry.size, geometry.spacing, strict=True)]
    return f"By its spacing of {format_spacing(geometry.spacing)} mm, the scan covers {format_spacing(covered)} mm"


def _base_grid(geometry: Geometry, box: Box, base: Sequence[float]) -> tuple[Geometry, Box]:
    """Grid of the base spacing that covers a scan in canonical order, and the place of a box of the scan on it.

    It begins where the box does, or so many whole voxels before: at the scan's corner, if the box is the scan.
    """
    spacing = geometry.canonical_spacing
    ratio = [mm / own for mm, own in zip(base, spacing, strict=True)]
    starts = [side.start for side in box]
    before = [ceil(first / r - 1e-3) for first, r in zip(starts, ratio, strict=True)]
    within = covering_size([side.stop - side.start for side in box], spacing, base)
    behind = covering_size([n - first for n, first in zip(geometry.canonical_size, starts, strict=True)], spacing, base)
    affine = geometry.canonical_affine
    affine[:3, 3] += affine[:3, :3] @ [first - n * r for first, n, r in zip(starts, before, ratio, strict=True)]
    size = triple(n + m for n, m in zip(before, behind, strict=True))
    place = triple(slice(n, n + m) for n, m in zip(before, within, strict=True))
    return geometry_of_affine(level_affine(affine, ratio), size), place


load = Segmenter  # as rare_lightning.load("best.ckpt")
