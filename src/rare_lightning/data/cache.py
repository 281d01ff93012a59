"""Cases on the base grid on disk: keyed by content and spacing, written whole or not at all, read memory-mapped."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torchio as tio

from rare_lightning.data.geometry import Spacing
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.task import Case, Task
from rare_lightning.errors import UserError
from rare_lightning.files import appearing

FORMAT_VERSION = 4
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
    """

    case_id: str
    folder: Path

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
    def affine(self) -> np.ndarray:
        """``(4, 4)``: voxel index on the base grid -> mm, in the scan's own world."""
        return self._read("case.json", lambda path: np.array(json.loads(path.read_text("utf-8"))["affine"]))

    @property
    def spacing(self) -> Spacing:
        """Spacing of the base grid in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per axis on the base grid."""
        d, h, w = self.image.shape[1:]
        return d, h, w

    def _load(self, name: str) -> np.ndarray:
        return self._read(f"{name}.npy", lambda path: np.load(path, mmap_mode="r", allow_pickle=False))

    def _read(self, name: str, read: Callable[[Path], np.ndarray]) -> np.ndarray:
        path = self.folder / name
        try:
            return read(path)
        except (OSError, ValueError, EOFError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not what preprocessing wrote ({error}). Remove {self.folder}") from error

    def fits(self, task: Task) -> bool:
        """Whether the task has as many channels as the image, and a class for each value of the label."""
        highest = int(self.foreground[:, 0].max(initial=0))
        return self.image.shape[0] == len(task.channels) and highest < len(task.classes)


def cache_key(case: Case, preprocessing: Preprocessing) -> str:
    """Digest of the two files' bytes, the base spacing and the format of an entry."""
    digest = hashlib.sha256(json.dumps([FORMAT_VERSION, list(preprocessing.spacing)]).encode())
    for path in (case.image, case.label):
        status = path.stat()
        digest.update(_file_digest(path, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:32]


@cache
def _file_digest(path: Path, size: int, changed: int) -> bytes:
    """Of a file of that size, last changed then: a start asks several times, and a task may have tens of GB."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def find_cached(case: Case, preprocessing: Preprocessing, cache_dir: Path) -> CachedCase | None:
    """The case's entry, if these very files were brought to this very spacing before."""
    folder = cache_dir / cache_key(case, preprocessing)
    return CachedCase(case.case_id, folder) if folder.is_dir() else None


def write_cached(case: Case, preprocessing: Preprocessing, cache_dir: Path) -> CachedCase:
    """Preprocess a case into the cache. Safe when several processes do so at once: an entry is renamed into place.

    Raises:
        UserError: If it cannot be written.
    """
    folder = cache_dir / cache_key(case, preprocessing)
    # TorchIO draws a number before every transform: a run must not depend on what was cached before.
    with torch.random.fork_rng(devices=[]):
        subject = preprocessing.on_base_grid(case)
    try:
        with appearing(folder) as scratch:
            _save(subject, case, scratch)
    except OSError as error:
        if not folder.is_dir():  # not another process that was faster
            # Of a disk that fills up while it writes, NumPy says neither number nor file.
            raise UserError(
                f"{cache_dir}: cannot be written ({error.strerror or error}). Free space, or give another "
                "data.cache_dir"
            ) from error
    return CachedCase(case.case_id, folder)


def _save(subject: tio.Subject, case: Case, folder: Path) -> None:
    label = subject.label.numpy()
    np.save(folder / "image.npy", np.ascontiguousarray(subject.image.numpy()))
    np.save(folder / "label.npy", np.ascontiguousarray(label))
    np.save(folder / "foreground.npy", _sample_foreground(label[0]))
    record = {"case": case.case_id, "image": str(case.image), "affine": subject.image.affine.tolist()}
    (folder / "case.json").write_text(json.dumps(record), encoding="utf-8")


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
