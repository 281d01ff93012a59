import pytest

from rare_lightning.data.routing import FULL, FinestGrids, finest_grids, route

STRIDES = {0: (1, 1, 1), 1: (2, 2, 2), 2: (4, 4, 4), 3: (8, 8, 8)}


@pytest.mark.parametrize(
    ("spacing", "detail", "mean", "finest"),
    [
        ((1, 1, 1), 0, 0, 0),
        ((1.4, 1.4, 1.4), 0, 0, 0),
        ((1.42, 1.42, 1.42), 0, 1, 1),
        ((1.85, 1.85, 1.85), 0, 1, 1),
        ((1.9, 1.9, 1.9), 1, 1, 1),
        ((2.2, 2.2, 2.2), 1, 1, 1),
        ((5.7, 5.7, 5.7), 2, 3, 3),
        ((1, 1, 2), 0, 0, 0),
        ((1, 1, 4), 1, 1, 0),
        ((1, 1, 8), 2, 1, 0),
        ((2, 2, 8), 2, 2, 1),
        ((1, 1, 30), 3, 2, 0),
        ((3, 2, 2), 1, 1, 1),
        ((0.3, 0.3, 0.3), 0, 0, 0),
        ((20, 20, 20), 3, 3, 3),
    ],
)
def test_strategies(spacing, detail, mean, finest):
    assert route(spacing, (1, 1, 1), STRIDES).level == detail
    assert route(spacing, (1, 1, 1), STRIDES, "mean").level == mean
    assert route(spacing, (1, 1, 1), STRIDES, "finest").level == finest


@pytest.mark.parametrize("axis", range(3))
def test_coarser_scans_never_enter_at_finer_levels(axis):
    entered = []
    for octaves in range(-10, 50):
        spacing = [1.0, 2.0, 3.0]
        spacing[axis] *= 2 ** (octaves / 10)
        entered.append(route(tuple(spacing), (1, 1, 1), STRIDES).level)
    assert entered == sorted(entered)
    assert len(set(entered)) > 1


def test_axes_are_renamed_alike():
    for spacing in ((1, 4, 2), (4, 2, 1), (2, 1, 4)):
        assert route(spacing, (1, 1, 1), STRIDES).level == route((1, 2, 4), (1, 1, 1), STRIDES).level


def test_levels_have_the_spacing_of_their_strides():
    found = route((2.0, 2.0, 3.0), (1.0, 1.0, 3.0), {0: (1, 1, 1), 1: (2, 2, 1), 2: (4, 4, 2)})
    assert found.level == 1
    assert found.spacing == (2.0, 2.0, 3.0)
    assert found.note == "2x2x3 mm enters at level 1 (keeps its detail), no resampling"


def test_the_note_says_what_is_done():
    assert route((2.2, 2.2, 2.2), (1, 1, 1), STRIDES).note.endswith("resampled to 2x2x2 mm")
    assert "finer than level 0" in route((0.5, 0.5, 0.5), (1, 1, 1), STRIDES).note
    assert "coarser than the last level" in route((12, 12, 12), (1, 1, 1), STRIDES).note
    assert route((1, 1, 1), (1, 1, 1), STRIDES, level=2).note.startswith("1x1x1 mm enters at level 2 (as asked for)")


@pytest.mark.parametrize(
    ("spacing", "why"),
    [
        ((1, 1, 2), "level 0 (keeps its detail)"),
        ((1, 1, 6), "level 2 (stretches no axis beyond twice)"),
        ((1, 1, 30), "level 3 (the coarsest level)"),
        ((0.5, 0.5, 0.5), "level 0 (the finest level, the scan is finer than level 0)"),
        ((12, 12, 12), "level 3 (keeps its detail, the scan is coarser than the last level)"),
    ],
)
def test_the_note_says_whether_detail_is_kept(spacing, why):
    assert f"enters at {why}" in route(spacing, (1, 1, 1), STRIDES).note


def test_unknown_strategies_are_refused():
    with pytest.raises(ValueError, match=r"routing \(nearest\) must be one of detail, mean, finest"):
        route((1, 1, 1), (1, 1, 1), STRIDES, "nearest")


def test_unknown_levels_are_refused():
    with pytest.raises(ValueError, match=r"level \(4\) must be one of \[0, 1, 2, 3\]"):
        route((1, 1, 1), (1, 1, 1), STRIDES, level=4)


def test_a_scan_enters_at_one_of_the_levels_there_are():
    two = {level: STRIDES[level] for level in (1, 2)}
    assert [route((mm,) * 3, (1, 1, 1), two).level for mm in (1, 2, 4, 8)] == [1, 1, 2, 2]
    assert "finer than level 1" in route((1, 1, 1), (1, 1, 1), two).note


@pytest.mark.parametrize(
    ("spacing", "grids"),
    [
        ((1, 1, 1), FULL),
        ((0.5, 0.5, 0.5), FULL),
        ((1.5, 1.5, 1.5), FULL),
        ((1.999, 1.999, 1.999), FinestGrids(1, (2, 2, 2), (2, 2, 2))),
        ((4, 4, 4), FinestGrids(2, (4, 4, 4), (4, 4, 4))),
        ((20, 20, 20), FinestGrids(3, (8, 8, 8), (8, 8, 8))),
        ((1, 1, 2), FULL),
        ((1, 1, 6), FinestGrids(2, (4, 4, 4), (1, 1, 4))),
        ((2, 1, 5), FinestGrids(2, (4, 4, 4), (2, 1, 4))),
    ],
)
def test_the_finest_grids_that_a_scan_fills(spacing, grids):
    assert finest_grids(spacing, (1, 1, 1), list(STRIDES.values())) == grids


def test_of_levels_with_one_grid_the_first_is_filled():
    strides = [(1, 1, 1), (1, 1, 1), (2, 2, 2)]
    assert finest_grids((1, 1, 1), (1, 1, 1), strides) == FULL
    assert finest_grids((2, 2, 2), (1, 1, 1), strides).level == 2


@pytest.mark.parametrize("spacing", [(1, 1), (0, 1, 1), (float("nan"), 1, 1), (1, 1, float("inf"))])
def test_what_is_no_spacing_is_refused(spacing):
    with pytest.raises(ValueError, match="a spacing must be three positive numbers of mm"):
        route(spacing, (1, 1, 1), STRIDES)
