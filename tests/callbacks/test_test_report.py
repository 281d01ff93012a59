import numpy as np
import pytest
import torch

from rare_lightning.callbacks import test_report
from rare_lightning.evaluation.figures import Slice
from rare_lightning.evaluation.protocol import Row
from rare_lightning.metrics import Scores
from rare_lightning.module import LevelResult


def piece(dice):
    blank = np.zeros((4, 4))
    return [Slice(0, "1x1x1", blank, blank, blank, dice, 1.0)]


@pytest.mark.parametrize(
    ("dice", "expected"),
    [
        ({"a": 0.9, "b": 0.1, "c": 0.5}, ["median: c", "worst: b"]),
        ({"a": float("nan"), "b": 0.2, "c": 0.5}, ["median: c", "worst: b"]),
        ({"a": float("nan")}, ["median and worst: a"]),
    ],
)
def test_median_and_worst_case_are_shown(dice, expected):
    shown = test_report._median_and_worst({case: piece(value) for case, value in dice.items()})
    assert [title for title, _ in shown] == expected


def test_the_slice_with_most_foreground_is_shown():
    truth = torch.zeros(8, 8, 6, dtype=torch.uint8)
    truth[2:4, 2:4, 1] = 1
    truth[2:6, 2:6, 4] = 2
    image = torch.arange(3.0).expand(4, 4, 3)
    row = Row("a", 1, (2.0, 2.0, 2.0), "fine", "x", Scores(0.25, 1, 1, 0))
    shown = test_report._slice(LevelResult(1, [row], image, truth, truth), [1.0, 1.0, 1.0])
    assert shown.truth.max() == 2
    assert shown.image.shape == (8, 8)
    assert (shown.image == 2).all()
    assert shown.dice == 0.25
    empty = torch.zeros_like(truth)
    assert (test_report._slice(LevelResult(1, [row], image, empty, empty), [1.0] * 3).image == 1).all()
