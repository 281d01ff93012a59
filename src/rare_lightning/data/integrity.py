"""Checks of every case before training, so that all problems are seen at once and early."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import SimpleITK as sitk
import torchio as tio

from rare_lightning.data.task import Case, Task
from rare_lightning.data.voxels import (
    case_id_of,
    channels_first,
    header_problem,
    image_name,
    is_nifti,
    read_nifti,
    reason,
)
from rare_lightning.errors import UserError

SPACING_TOLERANCE = 1e-3
"""Largest difference between the spacings of an image and its label, in mm."""

PLACE_TOLERANCE = 0.01
"""Largest distance between a voxel's places in both, of the finest spacing: what headers round away moves no voxel."""


@dataclass(frozen=True)
class Findings:
    """What a check has found of a case.

    Attributes:
        problems: One line for each; empty if the case can be used.
        values: Of its label.
        digest: Of the voxels of its images, if it was asked for.
    """

    problems: list[str]
    values: frozenset[int] = frozenset()
    digest: str = ""


def inspect_case(case: Case, task: Task, with_digest: bool = False) -> Findings:
    """Read all files of a case.

    Problems are missing or unreadable files (truncated ones among them, and headers that claim other sizes), shapes,
    spacings or affines that differ between image and label, NaN or infinite voxels, voxels and spacings that not every
    reader sees alike, constant channels, a wrong number of channels, unknown label values, a label in place of its
    image.
    """
    problems = []
    loaded = []
    for path, kind in (*((path, tio.ScalarImage) for path in case.images), (case.label, tio.LabelMap)):
        if not path.is_file():
            problems.append(f"{case.case_id}: {path}: {'is a folder' if path.is_dir() else 'file not found'}")
            continue
        try:
            # Before ITK, which would make room for as many voxels as a broken header claims.
            voxels = read_nifti(path) if is_nifti(path) else None
            if voxels is None:  # of what ITK cannot read, TorchIO says that nibabel could not either
                sitk.ReadImage(path)
            image = kind(path)
            image.load()
            loaded.append((path, image, image.numpy() if voxels is None else channels_first(voxels)))
        # Readers raise whatever they like on broken bytes; each becomes a line of the report.
        except Exception as error:
            problems.append(f"{case.case_id}: {path}: cannot be read ({reason(error)})")
    if problems:
        return Findings(problems)
    *images, (_, label, label_data) = loaded

    for path, image, data in images:
        if image.spatial_shape != label.spatial_shape:
            problems.append(f"{path}: image shape {image.spatial_shape} differs from label shape {label.spatial_shape}")
        elif not np.allclose(image.spacing, label.spacing, atol=SPACING_TOLERANCE):
            problems.append(f"{path}: image spacing {image.spacing} mm differs from label spacing {label.spacing} mm")
        elif (apart := _distance(image, label)) > PLACE_TOLERANCE * min(image.spacing):
            problems.append(f"{path}: image and label lie at different places, up to {apart:.3g} mm apart")
        if min(image.spatial_shape) < 2:
            problems.append(f"{path}: shape {image.spatial_shape} is not a 3D volume")
        if abs(np.linalg.det(image.affine)) < 1e-9 or not np.isfinite(image.affine).all():
            problems.append(f"{path}: affine is singular or not finite")
        if np.array_equal(data, label_data):
            problems.append(f"{path}: holds the voxels of its label")
        constant = [i for i, channel in enumerate(data) if np.isfinite(channel).all() and np.ptp(channel) == 0]
        if constant:
            problems.append(f"{path}: channel {', '.join(map(str, constant))} is constant")
    for path, seen, voxels in loaded:
        if is_nifti(path) and (problem := header_problem(path)):
            problems.append(f"{path}: {problem}")
        if count := int((~np.isfinite(voxels)).sum()):
            problems.append(f"{path}: {count} voxels are NaN or infinite")
        elif not _alike(seen.data.float().numpy(), voxels):
            problems.append(f"{path}: ITK reads other voxels than nibabel; save it again, as a real 3D or 4D image")

    files = ", ".join(map(str, case.images))
    if len(set(case.images)) < len(case.images):
        problems.append(f"{files}: the same file for two channels")
    channels = sum(image.num_channels for _, image, _ in images)
    if channels != len(task.channels):
        listed = ", ".join(task.channels)
        problems.append(f"{files}: {channels} channels, dataset.json lists {len(task.channels)} ({listed})")
    values = set(np.unique(label.numpy()).tolist())
    unknown = sorted(values - set(range(len(task.classes))))
    if label.num_channels != 1:
        problems.append(f"{case.label}: {label.num_channels} channels, a label map has 1")
    if unknown:
        problems.append(
            f"{case.label}: label values {unknown[:10]} are not in dataset.json (0..{len(task.classes) - 1})"
        )
    lines = [f"{case.case_id}: {problem}" for problem in problems]
    digest = _digest([data for _, _, data in images]) if with_digest else ""
    return Findings(lines, frozenset(int(value) for value in values if np.isfinite(value)), digest)


def _digest(images: Sequence[np.ndarray]) -> str:
    digest = hashlib.blake2b()
    for data in images:
        digest.update(np.ascontiguousarray(data.transpose(0, 3, 2, 1)).data)  # as they lie in a file: no copy is made
    return digest.hexdigest()


def _distance(one: tio.Image, other: tio.Image) -> float:
    """Between the places of a voxel in two images of one size, in mm, where it is largest."""
    corners = np.array(list(product(*((0, n - 1) for n in one.spatial_shape), (1,)))).T
    return float(np.linalg.norm(((one.affine - other.affine) @ corners)[:3], axis=0).max())


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Up to rounding. Almost all are equal, which is found in a fraction of the time."""
    return one.shape == other.shape and (np.array_equal(one, other) or np.allclose(one, other, rtol=1e-4))


def _other_orders(cases: Sequence[Case]) -> list[str]:
    """A line for each case that lists channels of the names of other cases in another order than most of them."""
    orders = {
        case: tuple(image_name(path).removeprefix(case_id_of(case.images)) for path in case.images) for case in cases
    }
    counts: dict[tuple[str, ...], Counter[tuple[str, ...]]] = {}
    for order in orders.values():
        counts.setdefault(tuple(sorted(order)), Counter())[order] += 1
    problems = []
    for case, order in orders.items():
        if order != (usual := counts[tuple(sorted(order))].most_common(1)[0][0]):
            own, most = (", ".join(name.strip("_.- ") for name in each) for each in (order, usual))
            problems.append(f"{case.case_id}: its channels are listed as {own}, and those of most cases as {most}")
    return problems


def check_cases(task: Task, cases: Iterable[Case], with_digests: bool = False) -> dict[str, Findings]:
    """Check cases of a task, and its list of cases, before anything is done with them.

    Args:
        task: The task.
        cases: Of it.
        with_digests: Whether images that are there twice are looked for.

    Returns:
        Case id -> what was found.

    Raises:
        UserError: If there are problems; it lists them all, a line each.
    """
    by_name: dict[str, list[str]] = {}
    for case in task.cases:
        by_name.setdefault(case.case_id, []).append(str(case.images[0]))
    problems = []
    for name, images in by_name.items():
        if len(set(images)) > 1:
            problems.append(f"{name}: the name of {len(images)} cases ({', '.join(images)}); rename their files")
        elif len(images) > 1:
            problems.append(f"{name}: listed {len(images)} times in 'training'; list it once")
    problems += _other_orders(task.cases)
    found = {}
    for case in cases:
        found[case.case_id] = inspect_case(case, task, with_digests)
        problems += found[case.case_id].problems
    if problems:
        listing = "\n  ".join(problems)
        raise UserError(
            f"{task.root}: {len(problems)} problem(s). Mend these cases or take them out of the task:\n  {listing}"
        )
    return found
