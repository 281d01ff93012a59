"""Scores of label maps in files, whichever tool wrote them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from rare_lightning.data.geometry import Geometry
from rare_lightning.data.scans import ScanFiles, find_scans, read_scan
from rare_lightning.data.task import Regions, Task
from rare_lightning.errors import UserError, few
from rare_lightning.evaluation.protocol import Row, score_regions


def score_label_maps(
    predictions: Mapping[int, Path],
    labels: Path | Task,
    class_names: Sequence[str],
    regions: Regions,
    tolerance_mm: float,
) -> tuple[list[Row], list[str]]:
    """Score every label map of some folders against the label of the same name, as the ``fine`` truth.

    A prediction on another grid is brought to the label's by the nearest voxel in physical space; beyond its edge is
    background.

    Args:
        predictions: Level of the scans that were segmented -> folder of their label maps, of any size, spacing and
            orientation, all of the same cases. The level's spacing is taken from them.
        labels: Folder of labels, named as the predictions; or a task, whose cases tell which label is whose.
        class_names: Background first.
        regions: Names and label values of what is scored.
        tolerance_mm: Of NSD, in mm.

    Returns:
        The scores, and names of the labels without a prediction, which are not scored.

    Raises:
        UserError: If a prediction has no label, lies elsewhere, or either holds something else than classes; or if
            folders hold different cases.
    """
    if isinstance(labels, Task):
        truths = {case.case_id: ScanFiles(case.case_id, (case.label,)) for case in labels.cases}
        place = labels.root
    else:
        truths, place = _label_maps(labels), labels
    found = {level: _label_maps(folder) for level, folder in predictions.items()}
    for folder, scans in zip(predictions.values(), found.values(), strict=True):
        if unknown := sorted(scans.keys() - truths.keys()):
            raise UserError(
                f"{folder}: {len(unknown)} of {len(scans)} label maps have no label of the same name in {place}, "
                f"such as {unknown[0]}"
            )
    cases = set().union(*found.values())
    for folder, scans in zip(predictions.values(), found.values(), strict=True):
        if lacking := sorted(cases - scans.keys()):
            raise UserError(
                f"{folder}: lacks {few(lacking)}, which another folder of predictions holds; levels need the same cases"
            )
    rows = []
    for name in sorted(cases):
        truth, true_grid = _read_classes(truths[name], len(class_names))
        for level, scans in found.items():
            prediction, grid = _read_classes(scans[name], len(class_names))
            brought = _to_grid(prediction, grid, true_grid)
            if brought is None:
                raise UserError(
                    f"{scans[name].paths[0]}: lies outside of {truths[name].paths[0]}; check origin and direction"
                )
            pair = torch.from_numpy(brought), torch.from_numpy(truth)
            by_region = score_regions(*pair, true_grid.spacing, regions, tolerance_mm)
            rows += [
                Row(name, level, grid.canonical_spacing, "fine", each, scores) for each, scores in by_region.items()
            ]
    return rows, sorted(truths.keys() - cases)


def _label_maps(folder: Path) -> dict[str, ScanFiles]:
    """By name, without the probabilities that rare predict writes beside its label maps."""
    found = {scan.name: scan for scan in find_scans([str(folder)], numbered_channels=False)}
    return {n: scan for n, scan in found.items() if n.removesuffix("_probabilities") not in found.keys() - {n}}


def _read_classes(scan: ScanFiles, classes: int) -> tuple[np.ndarray, Geometry]:
    """``(D, H, W)`` uint8 along the file's axes."""
    read = read_scan(scan)
    [path, *others] = scan.paths
    if others or len(read.array) != 1:
        raise UserError(f"{path}: has {len(read.array)} channels; a label map has one")
    values = np.unique(read.array)
    if not np.isin(values, np.arange(classes)).all():
        raise UserError(
            f"{path}: holds {', '.join(f'{value:g}' for value in values[:5])}, ...; a label map of these {classes} "
            f"classes holds 0 to {classes - 1}"
        )
    return read.array[0].astype(np.uint8), read.geometry


def _to_grid(label_map: np.ndarray, grid: Geometry, target: Geometry) -> np.ndarray | None:
    """Nearest voxel in physical space; None if the two do not meet."""
    if grid == target:
        return label_map
    outside = 255  # no class: a label map has fewer
    where = target.origin, target.spacing, target.direction
    nearest = sitk.sitkNearestNeighbor
    image = sitk.Resample(grid.stamp(label_map), target.size, sitk.Transform(), nearest, *where, outside)
    brought = sitk.GetArrayFromImage(image).transpose(2, 1, 0)
    return None if (brought == outside).all() else np.where(brought == outside, 0, brought)
