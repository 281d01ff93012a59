import pytest

from rare_lightning.level_cycle import make_level_cycle


@pytest.mark.parametrize(
    ("cycle", "levels", "batches"),
    [
        (None, [0, 1, 2], [[0, 1, 2]]),
        ("each", [0, 1, 2], [[0], [1], [2]]),
        ("nested", [0, 1, 2, 3], [[2, 3], [1, 2, 3], [0, 1, 2, 3]]),
        ("nested", [0, 1], [[0, 1]]),
        ("nested", [0], [[0]]),
        ([[1, 0, 1], [0]], [0, 1], [[0, 1], [0]]),
    ],
)
def test_cycles_by_name_fit_any_number_of_levels(cycle, levels, batches):
    assert make_level_cycle(cycle, levels) == batches
