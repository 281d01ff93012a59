"""Reading voxels so that broken files are found."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np

NIFTI = (".nii.gz", ".nii")


def is_nifti(path: Path) -> bool:
    """Whether a file name says so."""
    return path.name.lower().endswith(NIFTI)


def read_nifti(path: Path) -> np.ndarray:
    """Voxels of a NIfTI file in its own order of axes, float32.

    ITK, with which TorchIO reads, fills up a truncated NIfTI file with zeros and takes NaN for 0, without a word.

    Raises:
        Exception: Whatever nibabel and gzip raise at broken bytes.
    """
    if path.suffix == ".gz":
        with gzip.open(path) as stream:
            while stream.read(1 << 24):  # to the very end, where the checksum is
                pass
    return nib.load(path, mmap=False).get_fdata(dtype=np.float32)  # type: ignore[no-any-return]


def reason(error: Exception) -> str:
    """What a reader complained of, in one line; ITK says first where in its own source, and last what."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    marks = ("ITK ERROR: ", "sitk::ERROR: ")
    line = lines[-1] if lines[-1].startswith(marks) else lines[0]
    for mark in marks:
        line = line.removeprefix(mark)
    return line[:200]
