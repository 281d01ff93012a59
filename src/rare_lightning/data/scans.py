"""Finding the scans that were asked for, reading them, and writing answers beside their kind."""

import csv
import glob
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from rare_lightning.data.geometry import Geometry, read_geometry
from rare_lightning.data.voxels import (
    SUFFIXES,
    are_channels,
    case_id_of,
    channel_stem,
    channels_first,
    channels_of,
    header_problem,
    image_name,
    is_nifti,
    read_nifti,
    reason,
    suffix_of,
    told_apart,
)
from rare_lightning.errors import UserError

IMAGE_POSITION = "0020|0032"  # DICOM tag


@dataclass(frozen=True)
class ScanFiles:
    """Files of one scan.

    Attributes:
        name: What its answer is called.
        paths: One file or DICOM folder with every channel, or one per channel in the model's order.
    """

    name: str
    paths: tuple[Path, ...]

    @property
    def suffix(self) -> str:
        """Format of the answer: the scan's own, or NIfTI for a DICOM folder."""
        return suffix_of(self.paths[0]) or ".nii.gz"


@dataclass(frozen=True)
class Scan:
    """A scan in memory.

    Attributes:
        array: ``(C, D, H, W)`` along the file's axes.
        geometry: Where its voxels lie.
        nifti_header: The header to copy, of a NIfTI file.
    """

    array: np.ndarray
    geometry: Geometry
    nifti_header: nib.Nifti1Header | None = None

    @property
    def canonical(self) -> np.ndarray:
        """``(C, D, H, W)`` float32 along the canonical axes."""
        return np.stack([self.geometry.to_canonical(channel).astype(np.float32, copy=False) for channel in self.array])


def find_scans(
    inputs: Sequence[str],
    numbered_channels: bool = True,
    channels: int | None = None,
    besides: Path | None = None,
) -> list[ScanFiles]:
    """Scans of files, folders of files, DICOM folders, globs and CSV lists, sorted by name.

    A CSV list has a header and one scan per line: ``image[,image2,...]``, one column per channel, and paths relative
    to the list.

    Args:
        inputs: Any of these.
        numbered_channels: Files beside each other that are named ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz``, ...
            (nnU-Net's way) are the channels of one scan, if the first has one; else a scan each.
        channels: Of each scan, where that is known. Of one, files with such names are scans.
        besides: A folder, of whose files a pattern takes none: that of the answers.

    Raises:
        UserError: If nothing is found, a list leaves a channel out, or two scans would get answers of the same name.
    """
    scans: list[ScanFiles] = []
    files: list[Path] = []
    for text in inputs:
        path = Path(text).expanduser()
        if path.suffix.lower() == ".csv" and not path.is_dir():
            scans += _in_list(path)
            continue
        found = [path] if path.exists() else _matches(path, besides)
        if not found:
            raise UserError(f"{text}: no such file, folder or pattern")
        for place in found:
            if place.is_dir():
                series, inside = _in_folder(place)
                scans += series
                files += inside
            else:
                files.append(place)
    files = list(dict.fromkeys(files))
    _refuse_unknown(files)
    scans += (
        _grouped(files, channels) if numbered_channels else [ScanFiles(image_name(path), (path,)) for path in files]
    )
    scans = list(dict.fromkeys(scans))
    by_name: dict[str, ScanFiles] = {}
    names = told_apart([scan.name for scan in scans], [scan.paths[0] for scan in scans])
    for scan in (replace(scan, name=name) for scan, name in zip(scans, names, strict=True)):
        if (other := by_name.setdefault(scan.name, scan)) is not scan:
            raise UserError(
                f"{other.paths[0]} and {scan.paths[0]} would both be answered as {scan.name}: predict them into two "
                "folders, or rename one"
            )
    return [by_name[name] for name in sorted(by_name)]


def _matches(pattern: Path, besides: Path | None) -> list[Path]:
    """What a pattern finds, but for a folder and all within it."""
    found = [Path(match) for match in sorted(glob.glob(str(pattern), recursive=True))]
    if besides is None:
        return found
    folder = besides.resolve()
    return [path for path in found if not path.resolve().is_relative_to(folder)]


def read_scan(scan: ScanFiles) -> Scan:
    """Read all channels of a scan.

    Raises:
        UserError: If a file cannot be read, is not a 3D scan, holds voxels that are not finite, gives them two sizes,
            or lies on another grid than the first.
    """
    channels: list[np.ndarray] = []
    grids: list[Geometry] = []
    for path in scan.paths:
        volumes, grid = _read(path)
        refuse_non_finite(volumes, str(path))
        grids.append(grid)
        if not _same_grid(grids[0], grid):
            raise UserError(f"{path}: lies on another grid than {scan.paths[0]}; all channels must share one")
        channels += volumes
    header = nib.load(scan.paths[0]).header if is_nifti(scan.paths[0]) else None
    return Scan(np.stack(channels), grids[0], header)


def refuse_non_finite(volumes: Iterable[np.ndarray], name: str) -> None:
    """What NaN does to a network is seen nowhere in its label map.

    Raises:
        UserError: If a voxel is NaN or infinite.
    """
    if any(not np.isfinite(volume).all() for volume in volumes):
        raise UserError(f"{name}: holds NaN or infinite voxels; set them to a finite value first")


def write_array(array: np.ndarray, scan: Scan, path: Path) -> None:
    """Write ``([C,] D, H, W)`` along the file's axes onto the scan's own grid; the file appears whole or not at all.

    A NIfTI scan's header is copied, so that sform, qform and their codes stay to the last bit.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        temporary = Path(folder, path.name)
        if is_nifti(path) and scan.nifti_header is not None:
            header = scan.nifti_header.copy()
            header.set_data_dtype(array.dtype)
            header.set_slope_inter(1, 0)
            header["cal_min"] = header["cal_max"] = 0
            volume = array if array.ndim == 3 else array.transpose(1, 2, 3, 0)
            nib.Nifti1Image(volume, None, header).to_filename(temporary)
        elif array.ndim == 3:
            sitk.WriteImage(scan.geometry.stamp(array), str(temporary), useCompression=True)
        else:
            volumes = [scan.geometry.stamp(volume) for volume in array]
            joined = sitk.JoinSeries(volumes) if is_nifti(path) else sitk.Compose(volumes)  # as 4D, or as vectors
            sitk.WriteImage(joined, str(temporary), useCompression=True)
        # The data of .mhd and .nhdr first: the header that names it comes last.
        for written in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(written, path.parent / written.name)


def _refuse_unknown(files: Sequence[Path]) -> None:
    for path in files:
        if not suffix_of(path):
            raise UserError(
                f"{path}: not an image of a known format ({', '.join(SUFFIXES)}, or a folder of DICOM files)"
            )


def _grouped(files: Sequence[Path], channels: int | None) -> list[ScanFiles]:
    groups: dict[tuple[Path, str], list[Path]] = {}
    for path in sorted(files):
        groups.setdefault((path.parent, channel_stem(path)), []).append(path)
    scans = []
    for group in groups.values():
        if are_channels(group) and (len(group) == 1 or (channels != 1 and not _holds_channels(group[0]))):
            scans.append(ScanFiles(case_id_of(group), tuple(group)))
        else:
            scans += [ScanFiles(image_name(path), (path,)) for path in group]
    return scans


def _holds_channels(path: Path) -> bool:
    """Whether a file has several of its own; one whose header cannot be read is refused where it is read whole."""
    header = sitk.ImageFileReader()
    header.SetFileName(str(path))
    try:
        header.ReadImageInformation()
    except RuntimeError:
        return False
    channels: int = header.GetNumberOfComponents() * math.prod(header.GetSize()[3:])
    return channels > 1


def _in_folder(folder: Path) -> tuple[list[ScanFiles], list[Path]]:
    """DICOM series and image files."""
    try:
        # macOS leaves ._NAME beside NAME.
        inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror})") from error
    # Links to nothing too: they are reported.
    files = [path for path in inside if not path.is_dir() and suffix_of(path)]
    if not files and _series_in(folder):
        return [ScanFiles(folder.resolve().name, (folder,))], []
    series = [ScanFiles(sub.name, (sub,)) for sub in inside if sub.is_dir() and _series_in(sub)]
    if not files and not series:
        raise UserError(
            f"{folder}: holds no images ({', '.join(SUFFIXES)}) and no DICOM series that can be read. Images "
            f"in folders within are found by a pattern, '{folder}/**/*.nii.gz'"
        )
    return series, files


def _in_list(path: Path) -> list[ScanFiles]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            header, *lines = [line for line in csv.reader(file) if any(cell.strip() for cell in line)] or [[]]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as a CSV list ({error})") from error
    if not header or header[0].strip() != "image" or not lines:
        raise UserError(f"{path}: a CSV list needs the header image[,image2,...] and a line per scan, with commas")
    scans = []
    for line in lines:
        cells = [cell.strip() for cell in line]
        while not cells[-1]:  # fewer channels than columns
            cells.pop()
        if not all(cells):
            raise UserError(f"{path}: {','.join(line)} has a blank between its channels; name a file in every column")
        paths = tuple(path.parent / Path(cell).expanduser() for cell in cells)
        _refuse_unknown([path for path in paths if not path.is_dir()])
        scans.append(ScanFiles(paths[0].name if paths[0].is_dir() else case_id_of(paths), paths))
    return scans


def _read(path: Path) -> tuple[list[np.ndarray], Geometry]:
    """Channels along the file's axes, and the grid, of one file or DICOM folder."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        if is_nifti(path):
            volumes = list(channels_first(read_nifti(path)))
            if problem := header_problem(path):
                raise UserError(f"{path}: {problem}")
            return volumes, read_geometry(str(path))
        image = _read_series(path) if path.is_dir() else sitk.ReadImage(str(path))
        volumes = channels_of(image, str(path))
        return volumes, Geometry.of(image)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever readers of images raise at foreign bytes
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Context: ITK does not warn; what is wrong with a folder is said in one line of our own."""
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _series_in(folder: Path) -> tuple[str, ...]:
    """Identifiers of the DICOM series in a folder."""
    with _without_warnings():
        return tuple(sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)))


def _read_series(folder: Path) -> sitk.Image:
    series = _series_in(folder)
    if len(series) != 1:
        raise UserError(f"{folder}: holds {len(series)} DICOM series; give a folder with one")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    if len(files) == 1:  # which may hold many frames
        return sitk.ReadImage(files[0])
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    reader.MetaDataDictionaryArrayUpdateOn()
    with _without_warnings():
        image = reader.Execute()
    # ITK lays the slices above one another at equal distances, and only warns where one is missing.
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, 2]
    positions = np.array([reader.GetMetaData(i, IMAGE_POSITION).split("\\") for i in range(len(files))], dtype=float)
    heights = positions @ normal
    steps = np.diff(heights)
    if not np.allclose(steps, np.median(steps), rtol=0.01, atol=0.01):
        raise UserError(f"{folder}: its slices are not equally spaced ({steps.min():g} to {steps.max():g} mm apart)")
    beside = positions - np.outer(heights, normal)
    shift = np.linalg.norm(beside - beside[0], axis=1).max()
    if shift > min(image.GetSpacing()[:2]) / 2:
        raise UserError(
            f"{folder}: its slices shift sideways, by up to {shift:.1f} mm, as with a tilted gantry; convert it by "
            "dcm2niix, which straightens them"
        )
    return image


def _same_grid(one: Geometry, other: Geometry) -> bool:
    return one.size == other.size and np.allclose(one.affine, other.affine, atol=1e-3)
