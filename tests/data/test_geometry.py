from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from rare_lightning.data.geometry import Geometry, geometry_of_affine

OBLIQUE = nib.eulerangles.euler2mat(0.2, -0.3, 0.1)
ORIENTATIONS = [np.eye(3)[:, order] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]


def geometry(direction):
    return Geometry((3, 4, 5), (1.0, 2.5, 0.7), (10.0, -3.0, 7.0), tuple(direction.flatten().tolist()))


@pytest.mark.parametrize("direction", [r @ d for r in (np.eye(3), OBLIQUE) for d in ORIENTATIONS])
def test_canonical_order_is_nibabels_and_leads_back(direction):
    grid = geometry(direction)
    array = np.random.default_rng(0).random((3, 4, 5), dtype="f4")
    expected = nib.as_closest_canonical(nib.Nifti1Image(array, grid.affine))
    canonical = grid.to_canonical(array)
    assert np.array_equal(canonical, expected.get_fdata(dtype="f4"))
    assert canonical.shape == grid.canonical_size
    np.testing.assert_allclose(grid.canonical_affine, expected.affine, atol=1e-12)
    np.testing.assert_allclose(grid.canonical_spacing, expected.header.get_zooms(), rtol=1e-6)
    assert np.array_equal(grid.from_canonical(canonical), array)


def test_geometry_is_stamped_exactly():
    grid = geometry(OBLIQUE)
    array = np.arange(60, dtype="u1").reshape(3, 4, 5)
    image = grid.stamp(array)
    assert Geometry.of(image) == grid
    assert image[2, 1, 4] == array[2, 1, 4]


def test_an_affine_tells_the_geometry():
    grid = geometry(OBLIQUE)
    again = geometry_of_affine(grid.affine, grid.size)
    np.testing.assert_allclose(again.affine, grid.affine)
    np.testing.assert_allclose(again.spacing, grid.spacing)
    corner = grid.stamp(np.zeros((3, 4, 5), "u1")).TransformIndexToPhysicalPoint((2, 3, 4))
    np.testing.assert_allclose((grid.affine @ [2, 3, 4, 1])[:3], np.array(corner) * [-1, -1, 1])
    assert isinstance(grid.stamp(np.zeros((3, 4, 5), "u1")), sitk.Image)
