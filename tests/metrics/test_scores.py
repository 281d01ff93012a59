import math

import pytest
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance
from monai.metrics.surface_dice import compute_surface_dice

from rare_lightning.metrics import score_mask

EMPTY = torch.zeros(10, 10, 10, dtype=torch.bool)


def box(*ranges):
    mask = EMPTY.clone()
    mask[tuple(slice(*r) for r in ranges)] = True
    return mask


CUBE = box((2, 8), (2, 8), (2, 8))


def test_a_perfect_prediction():
    assert score_mask(CUBE, CUBE, (1.0, 1.0, 1.0), 1.0) == (1.0, 0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "spacing", "message"),
    [
        (CUBE.int(), (1.0, 1.0, 1.0), "the prediction must be a boolean tensor .*: Tensor of torch.int32"),
        (CUBE.numpy(), (1.0, 1.0, 1.0), "the prediction must be .*: ndarray of bool"),
        (CUBE[:5], (1.0, 1.0, 1.0), "must be of one grid"),
        (CUBE, (0.0, 1.0, 1.0), "must be of one grid, with three spacings above 0"),
    ],
)
def test_what_is_no_mask_of_one_grid_is_refused(prediction, spacing, message):
    with pytest.raises(ValueError, match=message):
        score_mask(prediction, CUBE, spacing, 1.0)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 0.5)])
def test_a_shifted_box_by_hand(spacing):
    shifted = box((3, 9), (2, 8), (2, 8))
    scores = score_mask(shifted, CUBE, spacing, 0.4)
    assert scores.dice == pytest.approx(5 / 6)
    assert scores.hd95_mm == pytest.approx(spacing[0])  # in mm, not in voxels
    assert scores.volume_diff == 0
    assert score_mask(shifted, CUBE, spacing, spacing[0]).nsd == 1
    assert scores.nsd < 1


def test_distances_give_the_scores_that_monai_gives():
    noise = torch.rand(2, 1, 1, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    prediction, truth = noise > torch.tensor([0.9, 0.8]).view(2, 1, 1, 1, 1, 1)
    scores = score_mask(prediction[0, 0], truth[0, 0], (0.7, 1.0, 2.5), 1.5)
    same = {"include_background": True, "spacing": (0.7, 1.0, 2.5)}
    assert scores.hd95_mm == pytest.approx(float(compute_hausdorff_distance(prediction, truth, percentile=95, **same)))
    assert scores.nsd == pytest.approx(float(compute_surface_dice(prediction, truth, class_thresholds=[1.5], **same)))


def test_a_header_that_rounds_its_spacing_changes_no_score():
    shifted = box((3, 9), (2, 8), (2, 8))
    for spacing in (1.0, 1.0000001, 1.00001, 0.9999999):
        scores = score_mask(shifted, CUBE, (spacing,) * 3, 1.0)
        assert scores.nsd == 1
        assert scores.hd95_mm == pytest.approx(spacing)
    assert score_mask(shifted, CUBE, (1.001,) * 3, 1.0).nsd < 1


def test_scores_do_not_depend_on_who_is_called_truth_but_for_volume():
    smaller = box((2, 8), (2, 8), (3, 6))
    there, back = score_mask(smaller, CUBE, (1, 1, 2), 1.0), score_mask(CUBE, smaller, (1, 1, 2), 1.0)
    assert there[:3] == pytest.approx(back[:3])
    assert there.volume_diff == pytest.approx(-0.5)
    assert back.volume_diff == pytest.approx(1.0)


def test_absent_from_both_is_undefined_and_not_perfect():
    assert all(map(math.isnan, score_mask(EMPTY, EMPTY, (1, 1, 1), 1.0)))


def test_absent_from_one_scores_zero():
    missed = score_mask(EMPTY, CUBE, (1, 1, 1), 1.0)
    assert (missed.dice, missed.nsd, missed.volume_diff) == (0, 0, -1)
    assert math.isnan(missed.hd95_mm)
    invented = score_mask(CUBE, EMPTY, (1, 1, 1), 1.0)
    assert (invented.dice, invented.nsd) == (0, 0)
    assert math.isnan(invented.hd95_mm)
    assert math.isnan(invented.volume_diff)
