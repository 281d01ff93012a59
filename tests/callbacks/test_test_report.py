import numpy as np
import pytest

from rare_lightning.callbacks import test_report
from rare_lightning.evaluation.slices import Slice


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
