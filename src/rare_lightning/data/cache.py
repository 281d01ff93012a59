"""Cases on the base grid on disk: keyed by content and spacing, written whole or not at all, read memory-mapped."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torchio as tio
from nibabel.affines import voxel_sizes
from torch import Tensor

from rare_lightning.data.preprocessing import Preprocessing, read_case
from rare_lightning.data.routing import FULL, FinestGrids
from rare_lightning.data.task import Case, Task
from rare_lightning.errors import UserError
from rare_lightning.files import appearing, replacing, write_json
from rare_lightning.networks.grids import Size3, Spacing, triple

T = TypeVar("T")

FORMAT_VERSION = 5
"""Counted up whenever preprocessing or the layout of an entry changes, so that old entries are not read."""

FOREGROUND_SAMPLES = 10_000
"""Foreground voxels remembered per class, from which patch centres are drawn."""


def default_cache_dir() -> Path:
    """``$XDG_CACHE_HOME/rare_lightning``, or ``~/.cache/rare_lightning``."""
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "rare_lightning"


@dataclass(frozen=True)
class CachedCase:
    """A case on the base grid.

    Attributes:
        case_id: The case.
        folder: Where its arrays lie.
        statistics_file: Among them, that of the normalisation and levels in use.
    """

    case_id: str
    folder: Path
    statistics_file: str

    @property
    def image(self) -> np.ndarray:
        """``(C, D, H, W)`` float32 with the intensities of the file, memory-mapped."""
        return self._load("image")

    @property
    def label(self) -> np.ndarray:
        """``(1, D, H, W)`` uint8, memory-mapped."""
        return self._load("label")

    @property
    def foreground(self) -> np.ndarray:
        """``(N, 4)``: class and voxel index of sampled foreground voxels."""
        return self._load("foreground")

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Shifts and scales of :meth:`Preprocessing.level_statistics`, both ``(levels, C)``."""
        shifts, scales = self._read(
            self.statistics_file, lambda path: torch.from_numpy(np.load(path, allow_pickle=False))
        )
        return shifts, scales

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)``: voxel index on the base grid -> mm, in the scan's own world."""
        return self._read("case.json", lambda path: np.array(json.loads(path.read_text("utf-8"))["affine"]))

    @property
    def spacing(self) -> Spacing:
        """Spacing of the base grid in mm."""
        return triple(voxel_sizes(self.affine).tolist())

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis on the base grid."""
        return triple(self.image.shape[1:])

    def _load(self, name: str) -> np.ndarray:
        return self._read(f"{name}.npy", lambda path: np.load(path, mmap_mode="r", allow_pickle=False))

    def _read(self, name: str, read: Callable[[Path], T]) -> T:
        path = self.folder / name
        try:
            return read(path)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not what preprocessing wrote ({error}). Remove {self.folder}") from error

    @property
    def classes(self) -> set[int]:
        """Foreground values of the label."""
        return set(np.unique(self.foreground[:, 0]).tolist())

    def fits(self, task: Task) -> bool:
        """Whether the task has as many channels as the image, and a class for each value of the label."""
        return self.image.shape[0] == len(task.channels) and max(self.classes, default=0) < len(task.classes)


def cache_key(case: Case, preprocessing: Preprocessing, grids: FinestGrids = FULL) -> str:
    """Digest of the files' bytes, the grid that they are brought to and the format of an entry."""
    grid = [FORMAT_VERSION, preprocessing.spacing, grids.image_stride, grids.label_stride]
    digest = hashlib.sha256(json.dumps(grid).encode())
    for path in (*case.images, case.label):
        status = path.stat()
        digest.update(_file_digest(path, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:32]


@cache
def _file_digest(path: Path, size: int, changed: int) -> bytes:
    """Of a file of that size, last changed then: a start asks several times, and a task may have tens of GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def find_cached(
    case: Case, preprocessing: Preprocessing, strides: Sequence[Size3], cache_dir: Path, grids: FinestGrids = FULL
) -> CachedCase | None:
    """The case's entry, if these very files were brought to this very grid before, and measured at these levels."""
    cached = _entry(case, preprocessing, strides, cache_dir, grids)
    return cached if (cached.folder / cached.statistics_file).is_file() else None


def write_cached(
    case: Case, preprocessing: Preprocessing, strides: Sequence[Size3], cache_dir: Path, grids: FinestGrids = FULL
) -> CachedCase:
    """Preprocess a case into the cache. Safe when several processes do so at once: what is new is renamed into place.

    Args:
        case: Of a task.
        preprocessing: Base spacing and normalisation.
        strides: Cumulative stride of each level.
        cache_dir: Of all cases. Other levels and normalisations add their statistics to the same entry.
        grids: That the case fills.

    Raises:
        UserError: If it cannot be written.
    """
    cached = _entry(case, preprocessing, strides, cache_dir, grids)
    # TorchIO draws a number before every transform: a run must not depend on what was cached before.
    with torch.random.fork_rng(devices=[]):
        subject = read_case(case)
    scan = subject.image
    statistics = torch.stack(preprocessing.level_statistics(scan.data, scan.spacing, strides)).numpy()
    try:
        if not cached.folder.is_dir():
            _write_entry(preprocessing.to_base_grid(subject, grids), case, cached.folder)
        with replacing(cached.folder / cached.statistics_file, shared=True) as part, part.open("wb") as file:
            np.save(file, statistics)
    except OSError as error:
        # Of a disk that fills up while it writes, NumPy says neither number nor file.
        raise UserError(
            f"{cache_dir}: cannot be written ({error.strerror or error}). Free space, or give another data.cache_dir"
        ) from error
    return cached


def _entry(
    case: Case, preprocessing: Preprocessing, strides: Sequence[Size3], cache_dir: Path, grids: FinestGrids
) -> CachedCase:
    measured = json.dumps([preprocessing.normalize, preprocessing.foreground, [list(stride) for stride in strides]])
    name = f"statistics-{hashlib.sha256(measured.encode()).hexdigest()[:16]}.npy"
    return CachedCase(case.case_id, cache_dir / cache_key(case, preprocessing, grids), name)


def _write_entry(subject: tio.Subject, case: Case, folder: Path) -> None:
    try:
        with appearing(folder) as scratch:
            _save(subject, case, scratch)
    except OSError:
        if not folder.is_dir():  # not another process that was faster
            raise


def _save(subject: tio.Subject, case: Case, folder: Path) -> None:
    label = subject.label.numpy()
    np.save(folder / "image.npy", np.ascontiguousarray(subject.image.numpy()))
    np.save(folder / "label.npy", np.ascontiguousarray(label))
    np.save(folder / "foreground.npy", _sample_foreground(label[0]))
    write_json({"affine": subject.image.affine.tolist()}, folder / "case.json")


def _sample_foreground(label: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(0)  # the same files give the same entry
    rows: Sequence[np.ndarray] = []
    for value in np.unique(label[label > 0]).tolist():
        voxels = np.argwhere(label == value)
        if len(voxels) > FOREGROUND_SAMPLES:
            voxels = voxels[np.sort(rng.choice(len(voxels), FOREGROUND_SAMPLES, replace=False))]
        rows = [*rows, np.column_stack([np.full(len(voxels), value), voxels])]
    return np.concatenate(rows).astype(np.int32) if rows else np.zeros((0, 4), np.int32)


def as_subject(image: np.ndarray | torch.Tensor, label: np.ndarray, affine: np.ndarray) -> tio.Subject:
    """Arrays ``(C, D, H, W)`` and ``(1, D, H, W)`` on one grid -> TorchIO subject."""
    return tio.Subject(
        image=tio.ScalarImage(tensor=torch.as_tensor(image), affine=affine),
        label=tio.LabelMap(tensor=torch.as_tensor(label), affine=affine),
    )
