import pytest
import torch
import torch.nn.functional as F

from rare_lightning.data.pyramid import downsample_label
from rare_lightning.evaluation.protocol import (
    on_level_and_base_grid,
    score_level,
    score_regions,
    to_labels,
    without_padding,
)


def certain(label, classes=3):
    return 100.0 * F.one_hot(label.long(), classes).movedim(-1, 1).float()


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 2, 2), (4, 2, 1)])
def test_the_truth_itself_is_a_perfect_answer_on_the_base_grid(stride):
    truth = torch.randint(0, 3, (1, 16, 8, 8))
    on_level, on_base = on_level_and_base_grid(certain(truth).softmax(1), stride, "base")
    assert torch.equal(to_labels(on_base[0]), truth[0])
    # The average-pooled softmax is the majority.
    assert torch.equal(to_labels(on_level[0]), downsample_label(truth, stride)[0])


def test_an_answer_on_the_level_grid_is_brought_up_physically_aligned():
    ramp = torch.linspace(-1, 1, 8).view(1, 1, 8, 1, 1).expand(1, 1, 8, 4, 4)
    on_level, on_base = on_level_and_base_grid(torch.cat([ramp, -ramp], 1).softmax(1), (2, 2, 2), "level")
    assert on_level.shape == (1, 2, 8, 4, 4)
    assert on_base.shape == (1, 2, 16, 8, 8)
    # The middle of the volume stays the middle.
    assert torch.equal(to_labels(on_base[0])[:, 0, 0], torch.tensor([1] * 8 + [0] * 8))
    torch.testing.assert_close(on_base.sum(1), torch.ones(1, 16, 8, 8))


def test_rows_name_level_truth_class_and_spacing():
    truth = torch.randint(0, 3, (8, 8, 8))
    coarse = downsample_label(truth[None], (2, 2, 1))[0]
    labels = {"level": coarse, "fine": truth}
    rows = score_level(labels, labels, "a", 1, (2, 2, 1), (1.0, 1.0, 2.5), {"x": [1], "y": [2]}, 1.0)
    assert [(row.truth, row.class_name) for row in rows] == [
        ("level", "x"), ("level", "y"), ("fine", "x"), ("fine", "y"),
    ]  # fmt: skip
    assert {row.spacing_mm for row in rows} == {(2.0, 2.0, 2.5)}
    assert all(row.scores.dice == 1 for row in rows)


def test_a_region_is_scored_as_a_class_of_its_values_would_be():
    prediction, truth = (torch.randint(0, 4, (6, 7, 8), dtype=torch.uint8) for _ in range(2))
    spacing = (1.0, 1.0, 2.5)
    together = score_regions(prediction.clamp(max=2), truth.clamp(max=2), spacing, {"x": [1], "y": [2]}, 1.0)
    scores = score_regions(prediction, truth, spacing, {"y": (3, 2), "all": (1, 2, 3), "x": (1,)}, 1.0)
    assert list(scores) == ["y", "all", "x"]
    assert (scores["x"], scores["y"]) == (together["x"], together["y"])
    foreground = score_regions(prediction.clamp(max=1), truth.clamp(max=1), spacing, {"all": [1]}, 1.0)
    assert scores["all"] == foreground["all"]


def test_distances_are_in_mm_of_the_grid_that_is_scored():
    truth = torch.zeros(16, 16, 16, dtype=torch.long)
    truth[4:12, 4:12, 4:12] = 1
    shifted = truth.roll(4, 0)
    predictions = {"fine": shifted, "level": shifted[::4, ::4, ::4]}
    truths = {"fine": truth, "level": truth[::4, ::4, ::4]}
    on_level, on_base = score_level(predictions, truths, "a", 2, (4, 4, 4), (0.5,) * 3, {"x": [1]}, 1.0)
    assert on_level.scores.hd95_mm == pytest.approx(2.0)
    assert on_base.scores.hd95_mm == pytest.approx(2.0)


def test_padding_is_dropped_and_no_voxel_of_the_scan_with_it():
    volume = torch.arange(8).view(8, 1, 1).expand(8, 8, 8)
    assert without_padding(volume, (5, 8, 8)).shape == (5, 8, 8)
    assert without_padding(volume[:4], (5, 8, 8), (2, 1, 1)).shape == (3, 8, 8)
