"""Where the voxels of a scan lie: between a file's own axes and the canonical ones that networks see."""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.affines import voxel_sizes

from rare_lightning.errors import UserError
from rare_lightning.networks.grids import Size3, Spacing, triple

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class Geometry:
    """Grid of a 3D scan as its header has it.

    Attributes:
        size: Voxels along the file's axes.
        spacing: mm along the file's axes.
        origin: World position of the first voxel in mm, in ITK's (left, posterior, superior) world.
        direction: Row-major 3x3 direction cosines in that world.
    """

    size: Size3
    spacing: Spacing
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image | sitk.ImageFileReader) -> "Geometry":
        """Geometry of an image, or of a header that was read, with at least three dimensions; of the first three."""
        rank = image.GetDimension()
        direction = np.array(image.GetDirection()).reshape(rank, rank)[:3, :3]
        size, spacing, origin = (read()[:3] for read in (image.GetSize, image.GetSpacing, image.GetOrigin))
        return cls(size, spacing, origin, tuple(direction.flatten().tolist()))

    @property
    def affine(self) -> np.ndarray:
        """``(4, 4)`` voxel index -> mm in the (right, anterior, superior) world, as nibabel and TorchIO have it."""
        affine = np.eye(4)
        affine[:3, :3] = np.array(self.direction).reshape(3, 3) * np.array(self.spacing)
        affine[:3, 3] = self.origin
        return LPS_TO_RAS @ affine

    @property
    def canonical_spacing(self) -> Spacing:
        """Spacing in mm along the canonical axes."""
        return triple(self.spacing[int(axis)] for axis in np.argsort(self._orientation[:, 0]))

    @property
    def canonical_size(self) -> Size3:
        """Voxels along the canonical axes."""
        return triple(self.size[int(axis)] for axis in np.argsort(self._orientation[:, 0]))

    @property
    def canonical_affine(self) -> np.ndarray:
        """:attr:`affine` of the canonical voxel order."""
        affine: np.ndarray = self.affine @ nib.orientations.inv_ornt_aff(self._orientation, self.size)
        return affine

    def to_canonical(self, array: np.ndarray) -> np.ndarray:
        """Reorder ``(D, H, W)`` from the file's axes to the canonical ones."""
        reordered: np.ndarray = nib.orientations.apply_orientation(array, self._orientation)
        return reordered

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """Reorder ``(D, H, W)`` from the canonical axes to the file's."""
        canonical = np.array([[0, 1], [1, 1], [2, 1]])
        back = nib.orientations.ornt_transform(canonical, self._orientation)
        reordered: np.ndarray = nib.orientations.apply_orientation(array, back)
        return reordered

    def stamp(self, array: np.ndarray) -> sitk.Image:
        """``(D, H, W)`` along the file's axes -> image with exactly this geometry."""
        image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image

    @property
    def _orientation(self) -> np.ndarray:
        """Canonical axis, and 1 or -1, of each of the file's axes."""
        orientation: np.ndarray = nib.orientations.io_orientation(self.affine)
        return orientation


def format_spacing(spacing: Sequence[float]) -> str:
    """``(1.0, 1.0, 2.5)`` -> ``1x1x2.5``."""
    return "x".join(f"{mm:.4g}" for mm in spacing)


def read_geometry(path: str) -> Geometry:
    """Geometry of a file, from its header alone.

    Raises:
        UserError: If the header cannot be read, or is of a plane.
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{path}: the header cannot be read; check the file, or run: rare data check ROOT") from error
    if reader.GetDimension() < 3:
        raise UserError(f"{path}: has {reader.GetDimension()} dimensions, where a scan has 3")
    return Geometry.of(reader)


def geometry_of_affine(affine: np.ndarray, size: Size3) -> Geometry:
    """Geometry of a grid given by its affine ``(4, 4)``: voxel index -> mm in the (right, anterior, superior) world."""
    lps = LPS_TO_RAS @ affine
    spacing = voxel_sizes(lps)
    direction = (lps[:3, :3] / spacing).flatten().tolist()
    return Geometry(size, triple(spacing.tolist()), tuple(lps[:3, 3].tolist()), tuple(direction))


def level_affine(affine: np.ndarray, stride: Sequence[float]) -> np.ndarray:
    """Affine ``(4, 4)`` of the level grid: first voxel at the centre of the first block, spacing times stride.

    Args:
        affine: ``(4, 4)`` of the base grid, voxel index -> mm.
        stride: Of the level per axis, in base voxels; whole or not.
    """
    scaled = affine.copy()
    scaled[:3, 3] += affine[:3, :3] @ ((np.array(stride) - 1) / 2)
    scaled[:3, :3] = affine[:3, :3] * np.array(stride)
    return scaled
