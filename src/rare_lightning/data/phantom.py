"""Synthetic Decathlon tasks, drawn as label maps and turned into scans by TorchIO."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torchio as tio

from rare_lightning.data.sampling import seeded
from rare_lightning.errors import UserError
from rare_lightning.files import appearing, write_json

PhantomKind = Literal["hippocampus", "brats"]
Means = list[tuple[float, float]]

ORIENTATIONS = ("RAS", "LAS", "LPS", "RSA", "PIR")
"""Storage orientations that cases take turns in, so that nothing can rely on one."""


def make_phantom(
    root: str,
    kind: PhantomKind = "hippocampus",
    cases: int = 24,
    unlabelled: int = 2,
    seed: int = 0,
    size: list[int] | None = None,
) -> None:
    """Write a Decathlon task of phantoms: dataset.json, imagesTr, labelsTr and imagesTs.

    The same arguments write the same bytes.

    Args:
        root: Folder to make. Must not exist yet.
        kind: ``hippocampus`` (1 channel, two touching structures of like intensity, about 35x50x36 voxels of 1 mm) or
            ``brats`` (FLAIR, T1w, T1Gd and T2w; edema, non-enhancing and enhancing tumour inside a brain).
        cases: Labelled cases.
        unlabelled: Cases in imagesTs.
        seed: Of everything random.
        size: Voxels per axis along (right, anterior, superior); hippocampus cases vary around it. By default
            [35, 50, 36] and [64, 72, 56].

    Raises:
        UserError: If root exists, or a number is too small.
    """
    target = Path(root).expanduser()
    if target.exists():
        raise UserError(f"{target}: exists already. Choose a new folder, or remove this one.")
    if cases < 1 or min(unlabelled, seed) < 0:
        raise UserError(f"cases ({cases}) must be >= 1, unlabelled ({unlabelled}) and seed ({seed}) >= 0")
    extent = size or ([35, 50, 36] if kind == "hippocampus" else [64, 72, 56])
    if len(extent) != 3 or min(extent) < 24:
        raise UserError(f"size must be three numbers >= 24: {extent}")
    with appearing(target) as scratch:
        _write_task(scratch, kind, cases, unlabelled, seed, (extent[0], extent[1], extent[2]))


def _write_task(
    root: Path, kind: PhantomKind, cases: int, unlabelled: int, seed: int, size: tuple[int, int, int]
) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        (root / folder).mkdir()
    training, test = [], []
    for index in range(cases + unlabelled):
        name = f"{kind}_{index + 1:03d}.nii.gz"
        with seeded(seed, index):
            subject = _hippocampus(size) if kind == "hippocampus" else _brats(size)
            subject = tio.ToOrientation(ORIENTATIONS[index % len(ORIENTATIONS)])(subject)
        if index < cases:
            subject.image.save(root / "imagesTr" / name)
            subject.label.save(root / "labelsTr" / name)
            training.append({"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"})
        else:
            subject.image.save(root / "imagesTs" / name)
            test.append(f"./imagesTs/{name}")
    if kind == "hippocampus":
        channels, classes = ["MRI"], ["background", "Anterior", "Posterior"]
    else:
        channels = ["FLAIR", "T1w", "t1gd", "T2w"]
        classes = ["background", "edema", "non-enhancing tumor", "enhancing tumour"]
    description = {
        "name": f"Phantom {kind}",
        "description": f"Synthetic {kind} scans, seed {seed}",
        "tensorImageSize": "3D" if len(channels) == 1 else "4D",
        "modality": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {str(i): name for i, name in enumerate(classes)},
        "numTraining": cases,
        "numTest": unlabelled,
        "training": training,
        "test": test,
    }
    write_json(description, root / "dataset.json")


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand(()))


def _grid(size: tuple[int, int, int]) -> np.ndarray:
    """Voxel centres ``(D, H, W, 3)`` in mm, the volume's centre at 0."""
    axes = [np.arange(n) - (n - 1) / 2 for n in size]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def _ellipsoid(points: np.ndarray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    return np.asarray((((points - np.array(centre)) / np.array(radii)) ** 2).sum(-1) < 1)


def _subject(labels: np.ndarray, max_displacement: float) -> tio.Subject:
    """Label map -> deformed subject with ``tissue``, at 1 mm."""
    affine = np.eye(4)
    affine[:3, 3] = [-_uniform(10, 40), _uniform(-60, 0), _uniform(-30, 30)]
    subject = tio.Subject(tissue=tio.LabelMap(tensor=torch.from_numpy(labels[None].astype(np.int16)), affine=affine))
    deform = tio.Compose(
        [
            tio.RandomAffine(scales=0.12, degrees=12, translation=2),
            tio.RandomElasticDeformation(num_control_points=6, max_displacement=max_displacement),
        ]
    )
    return deform(subject)


def _scan(subject: tio.Subject, means: Means, blur: float, noise: float) -> tio.Subject:
    """Add ``image``: intensities drawn per tissue, partial volume, bias field and noise; 0 to 1000 or so, int16.

    ``means`` has the range of the mean of each tissue.
    """
    # RandomLabelsToImage wants labels 0, 1, 2, ... all present, and deformation can push a tissue out of the volume.
    present, ranks = subject.tissue.data.unique(return_inverse=True)
    present = present.long().tolist()
    subject = tio.Subject(tissue=tio.LabelMap(tensor=ranks, affine=subject.tissue.affine))
    scan = tio.Compose(
        [
            tio.RandomLabelsToImage(
                label_key="tissue",
                image_key="image",
                mean=[means[tissue] for tissue in present],
                std=[(0.02, 0.06)] * len(present),
            ),
            tio.RandomBlur(std=(blur / 2, blur)),
            tio.RandomBiasField(coefficients=0.25),
            tio.RandomNoise(std=(noise / 2, noise)),
        ]
    )(subject)
    gain = _uniform(300, 3000)  # scanners do not agree on units
    scan.image.set_data((scan.image.data * gain).clamp(1, 32767).to(torch.int16))
    return scan


def _finish(image: torch.Tensor, tissue: tio.LabelMap, classes: int) -> tio.Subject:
    """Image, and tissues 1..classes - 1 as labels; the other tissues become background."""
    label = torch.where(tissue.data < classes, tissue.data, torch.zeros_like(tissue.data)).to(torch.uint8)
    return tio.Subject(
        image=tio.ScalarImage(tensor=image, affine=tissue.affine),
        label=tio.LabelMap(tensor=label, affine=tissue.affine),
    )


def _hippocampus(size: tuple[int, int, int]) -> tio.Subject:
    """A bent body with a head, among white matter, grey matter, fluid and an almond of the head's intensity."""
    # Drawn with a margin that is cut off again, so that deformation brings in tissue and not emptiness.
    margin = 6
    varied = tuple(round(n * _uniform(0.9, 1.1)) for n in size)
    points = _grid((varied[0] + 2 * margin, varied[1] + 2 * margin, varied[2] + 2 * margin))
    scale = np.array(varied) / np.array([35, 50, 36])
    points = points / scale
    tissues = np.full(points.shape[:3], 3)  # white matter
    tissues[points[..., 2] + 0.25 * points[..., 1] < -9] = 4  # grey matter below
    tissues[_ellipsoid(points, (5, -6, 9), (4, 18, 4))] = 5  # ventricle above
    along = np.linspace(0, 1, 41)
    bend = _uniform(3, 6)
    centre = np.stack([bend * np.sin(np.pi * along) - 3, 34 * along - 18, 8 * (along - 0.6) ** 2 - 1], axis=-1)
    radius = 3.5 + 2.5 * along**2 + 0.8 * np.sin(3 * np.pi * along)
    distance = np.linalg.norm(points[..., None, :] - centre, axis=-1) - radius
    nearest = distance.argmin(-1)
    inside = distance.min(-1) < 0
    border = _uniform(0.58, 0.66)
    tissues[_ellipsoid(points, (-6, 19, 5), (6, 6, 5))] = 6  # almond, in front of the head
    tissues[inside & (along[nearest] >= border)] = 1
    tissues[inside & (along[nearest] < border)] = 2
    subject = tio.Crop(margin)(_subject(tissues, 3.5))
    grey = (0.50, 0.56)
    means: Means = [(0.0, 0.0), grey, grey, (0.72, 0.82), (0.42, 0.48), (0.12, 0.2), grey]
    # Head and body are one structure to the scanner: where one ends is a matter of shape.
    shared = float(torch.empty(()).uniform_(*grey))
    means[1] = means[2] = means[6] = (shared, shared)
    return _finish(_scan(subject, means, blur=0.7, noise=0.05).image.data, subject.tissue, 3)


def _brats(size: tuple[int, int, int]) -> tio.Subject:
    """A brain with ventricles and one tumour: a necrotic core, an enhancing rim, edema around them."""
    points = _grid(size)
    half = np.array(size) / 2
    tissues = np.zeros(size, dtype=np.int64)
    brain_radii = (0.85 * half[0], 0.85 * half[1], 0.85 * half[2])
    tissues[_ellipsoid(points, (0, 0, 0), brain_radii)] = 5  # grey matter
    inner = tuple(0.85 * radius for radius in brain_radii)
    tissues[_ellipsoid(points, (0, 0, 0), (inner[0], inner[1], inner[2]))] = 4  # white matter
    for side in (-1, 1):
        tissues[_ellipsoid(points, (side * 0.14 * half[0], 0, 0), (0.1 * half[0], 0.4 * half[1], 0.2 * half[2]))] = 6
    brain = tissues > 0
    hemisphere = 1 if _uniform(0, 1) < 0.5 else -1
    centre = (
        hemisphere * _uniform(0.25, 0.45) * half[0],
        _uniform(-0.35, 0.35) * half[1],
        _uniform(-0.25, 0.25) * half[2],
    )
    radius = _uniform(0.34, 0.46) * half.min()
    for tissue, share in ((1, 1.0), (3, 0.66), (2, 0.42)):
        radii = tuple(share * radius * _uniform(0.85, 1.15) for _ in range(3))
        tissues[_ellipsoid(points, centre, (radii[0], radii[1], radii[2])) & brain] = tissue
    subject = _subject(tissues, max_displacement=min(size) / 14)
    outside, fluid = (0.0, 0.0), (0.08, 0.15)
    # Tissues: outside, edema, non-enhancing, enhancing, white matter, grey matter, fluid.
    channels: list[Means] = [
        [outside, (0.75, 0.85), (0.55, 0.65), (0.65, 0.75), (0.35, 0.4), (0.45, 0.5), fluid],
        [outside, (0.35, 0.4), (0.25, 0.32), (0.38, 0.45), (0.6, 0.65), (0.48, 0.52), fluid],
        [outside, (0.35, 0.4), (0.25, 0.32), (0.8, 0.95), (0.6, 0.65), (0.48, 0.52), fluid],
        [outside, (0.75, 0.85), (0.65, 0.75), (0.6, 0.7), (0.32, 0.38), (0.42, 0.48), (0.85, 0.95)],
    ]
    scans = [_scan(subject, means, blur=0.7, noise=0.04).image.data for means in channels]
    # Skull-stripped, as the Decathlon's are: exactly 0 outside the brain.
    image = torch.cat(scans) * (subject.tissue.data > 0)
    return _finish(image, subject.tissue, 4)
