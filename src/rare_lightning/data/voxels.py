"""Image files by their names, and reading voxels so that broken files are found."""

import gzip
import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

from rare_lightning.data.geometry import format_spacing, read_geometry
from rare_lightning.errors import UserError

NIFTI = (".nii.gz", ".nii")
SUFFIXES = (*NIFTI, ".mha", ".mhd", ".nrrd", ".nhdr")
NO_NUMBERS = "its voxels are {}; a number for each is needed, such as a magnitude"


def suffix_of(path: Path) -> str | None:
    """The image suffix of a file name; None if it has none that is known."""
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), None)


def image_name(path: Path) -> str:
    """File name without the suffix of an image."""
    return path.name[: len(path.name) - len(suffix_of(path) or "")]


def channel_stem(path: Path) -> str:
    """NAME of a file ``NAME_0003.nii.gz``; of any other, its :func:`image_name`."""
    name = image_name(path)
    stem, _, number = name.rpartition("_")
    return stem if stem and len(number) == 4 and number.isdigit() else name


def are_channels(paths: Sequence[Path]) -> bool:
    """Whether files are ``NAME_0000``, ``NAME_0001``, ...: a lone ``NAME_0003`` is a case with that name."""
    return all(image_name(path) == f"{channel_stem(paths[0])}_{i:04d}" for i, path in enumerate(paths))


def case_id_of(paths: Sequence[Path]) -> str:
    """What a scan of these files is called everywhere.

    A single file by its name without suffix, and without nnU-Net's ``_0000``; several by what their names begin with in
    common (``NAME_t1.nii.gz``, ``NAME_t2.nii.gz``), or by their folder where that is nothing (``NAME/t1.nii.gz``).
    """
    if are_channels(paths):
        return channel_stem(paths[0])
    names = [image_name(path) for path in paths]
    if len(set(names)) == 1:
        return names[0]
    words = zip(*(re.findall(r"[^_. -]+[_. -]*", name) for name in names), strict=False)
    common = "".join(first for first, *_ in takewhile(lambda each: len(set(each)) == 1, words)).rstrip("_. -")
    folder = paths[0].parent.name if len({path.parent for path in paths}) == 1 else ""
    return common or folder or names[0]


def told_apart(names: Sequence[str], paths: Sequence[Path]) -> list[str]:
    """Names of scans; by their folders too where several share one, as each patient's ``T1.nii.gz`` does.

    Args:
        names: As :func:`case_id_of` gives them.
        paths: A file of each.
    """
    times = Counter(name for name, _ in {*zip(names, paths, strict=True)})
    return [
        f"{path.absolute().parent.name}_{name}" if times[name] > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]


def is_nifti(path: Path) -> bool:
    """Whether a file name says so."""
    return path.name.lower().endswith(NIFTI)


def read_nifti(path: Path) -> np.ndarray:
    """Voxels of a NIfTI file in its own order of axes, float32.

    ITK, with which TorchIO reads, fills up a truncated NIfTI file with zeros and takes NaN for 0, without a word.

    Raises:
        ValueError: If the file does not hold as many bytes as its header describes, of which nothing is made; or its
            voxels are colours, or complex, of which nibabel would take the real part.
        Exception: Whatever else nibabel and gzip raise at broken bytes.
    """
    image = nib.load(path, mmap=False)
    voxels = image.dataobj
    if voxels.dtype.kind not in "iuf":
        kind = "complex" if voxels.dtype.kind == "c" else "colours"
        raise ValueError(NO_NUMBERS.format(kind))
    described = voxels.offset + math.prod(map(int, voxels.shape)) * voxels.dtype.itemsize
    held = 0
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        while held <= described and (block := stream.read(1 << 20)):  # to the very end, where the checksum is
            held += len(block)
    if held != described:
        more = "more" if held > described else f"{held}"
        raise ValueError(f"its header describes {described} bytes, it holds {more}")
    with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 becomes infinite
        return image.get_fdata(dtype=np.float32)  # type: ignore[no-any-return]


def header_problem(path: Path) -> str | None:
    """What is wrong with a NIfTI header that is of another version, or gives two spacings or orientations; or None.

    ITK goes by pixdim, and nibabel by the affine. Both are compared as nibabel has them: ITK brings micrometres to mm.
    Of a sform and a qform that differ, or where the codes of both are 0, each takes another one.

    Raises:
        Exception: Whatever nibabel raises at broken bytes.
    """
    image = nib.load(path)
    if isinstance(image, nib.Nifti2Image):
        return "is of NIfTI-2, which ITK does not read; save it as NIfTI-1"
    given, by_affine = image.header.get_zooms()[:3], voxel_sizes(image.affine)
    if not np.allclose(given, by_affine, rtol=1e-3, atol=0):
        pixdim, affine = format_spacing(given), format_spacing(by_affine)
        return f"its voxels are of {pixdim} by pixdim and of {affine} by its affine; set both to the truth"
    try:
        geometry = read_geometry(str(path))
    except UserError:
        return "ITK cannot read its header, as where axes are not at right angles; resample it onto a grid of such"
    one, other = ("".join(nib.aff2axcodes(affine)) for affine in (image.affine, geometry.affine))
    if one == other:
        return None
    sform, qform = (int(image.header[f"{form}_code"]) for form in ("sform", "qform"))
    return (
        f"its axes are {one} by one reading of its header and {other} by another (sform_code {sform}, qform_code "
        f"{qform}); set both forms to the truth, and their codes to 1"
    )


def reason(error: Exception) -> str:
    """What a reader complained of, in one line; ITK says first where in its own source and which object, then what."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    for mark in ("ITK ERROR: ", "sitk::ERROR: "):
        if marked := [i for i, line in enumerate(lines) if line.startswith(mark)]:
            lines = lines[marked[-1] :]
            lines[0] = re.sub(r"^\w+\(0x[0-9a-f]+\): ", "", lines[0].removeprefix(mark))
    # "Error reading NAME:" is followed by a reader's own account, the cause last.
    return (lines[-1] if lines[0].endswith(":") else lines[0])[:200]


def channels_first(voxels: np.ndarray) -> np.ndarray:
    """Voxels ``(D, H, W[, 1][, C])`` of a NIfTI file, 5D ones with an empty time axis, as ``(C, D, H, W)``.

    Raises:
        ValueError: If there are fewer or more dimensions.
    """
    if voxels.ndim < 3 or min(voxels.shape[:3]) < 1 or sum(n > 1 for n in voxels.shape[3:]) > 1:
        raise ValueError(f"has shape {voxels.shape}; a 3D scan, or 4D with channels, is needed")
    return np.moveaxis(voxels.reshape(*voxels.shape[:3], -1), 3, 0)


def channels_of(image: sitk.Image, name: str) -> list[np.ndarray]:
    """Channels ``(D, H, W)`` along the file's axes of a 3D, vector-valued or 4D image.

    Raises:
        UserError: If it has fewer or more dimensions, or complex voxels.
    """
    if "complex" in image.GetPixelIDTypeAsString():
        raise UserError(f"{name}: {NO_NUMBERS.format('complex')}")
    array = sitk.GetArrayFromImage(image)  # the file's axes in reverse, components last
    components = image.GetNumberOfComponentsPerPixel()
    if image.GetDimension() == 3 and components > 1:
        return [array[..., i].transpose(2, 1, 0) for i in range(components)]
    if image.GetDimension() == 3:
        return [array.transpose(2, 1, 0)]
    if image.GetDimension() == 4 and components == 1:
        return [volume.transpose(2, 1, 0) for volume in array]
    raise UserError(f"{name}: has {image.GetDimension()} dimensions; a 3D scan, or 4D with channels, is needed")
