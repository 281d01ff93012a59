import numpy as np
import pytest

from rare_lightning.evaluation.statistics import (
    holm,
    interval,
    mean_over_cases,
    mean_where_defined,
    paired_test,
    resample_cases,
)

NAN = np.nan


def test_holm_by_hand():
    # Sorted: .005 x 4, .01 x 3, .03 x 2, .04 x 1; none below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 0.9, 0.5]) == [1.0, 1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_what_was_not_tested_does_not_belong_to_the_family():
    assert holm([NAN, 0.02, NAN, 0.01]) == pytest.approx([NAN, 0.02, NAN, 0.02], nan_ok=True)


def test_a_paired_test_by_hand():
    found = paired_test(np.array([0.1, 0.2, 0.3, -0.4, 0.0, NAN]))
    assert found.cases == 5
    assert found.median == pytest.approx(0.1)
    assert found.low <= found.median <= found.high
    # Ranks 1, 2, 3 for and 4 against; 7 of the 16 signs of four ranks give a sum of 4 or less.
    assert found.rank_biserial == pytest.approx((6 - 4) / 10)
    assert found.p == pytest.approx(2 * 7 / 16)


def test_signs_turn_the_effect_and_not_the_p_value():
    differences = np.random.default_rng(0).normal(0.3, size=60)
    one, other = paired_test(differences), paired_test(-differences)
    assert one.p == pytest.approx(other.p)
    assert one.median == -other.median
    assert one.rank_biserial == pytest.approx(-other.rank_biserial)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-2)


def test_no_difference_is_no_evidence():
    assert paired_test(np.zeros(5)) == (5, 0, 0, 0, 0, 1)
    assert paired_test(np.array([0.1 + 0.2 - 0.3, 0.0])).p == 1  # rounding is no difference
    assert paired_test(np.array([0.5])).p == 1
    assert np.isnan(paired_test(np.full(3, NAN))[1:]).all()


def test_means_of_draws_are_those_of_the_cases_drawn():
    scores = np.random.default_rng(0).uniform(size=(2, 3, 7))
    scores[0, 1, [2, 5]] = NAN
    drawn = resample_cases(7)[:20]
    counts = np.stack([np.bincount(cases, minlength=7) for cases in drawn])
    np.testing.assert_allclose(
        mean_over_cases(scores, counts), [np.nanmean(scores[..., cases], axis=-1) for cases in drawn]
    )


def test_what_is_never_defined_stays_so():
    scores = np.full((2, 4), NAN)
    scores[0, 1] = 0.5
    means = mean_over_cases(scores, np.array([[1, 1, 1, 1], [4, 0, 0, 0]]))
    np.testing.assert_array_equal(means, [[0.5, NAN], [NAN, NAN]])
    np.testing.assert_array_equal(interval(means), [[0.5, NAN]] * 2)
    np.testing.assert_array_equal(mean_where_defined(means, axis=1), [0.5, NAN])


def test_an_interval_contains_the_mean_and_narrows_with_the_cases():
    widths = []
    for cases in (20, 500):
        scores = np.random.default_rng(0).uniform(size=cases)
        counts = np.stack([np.bincount(drawn, minlength=cases) for drawn in resample_cases(cases)])
        low, high = interval(mean_over_cases(scores, counts))
        assert low < scores.mean() < high
        # Twice 1.96 standard errors, for a mean.
        assert high - low == pytest.approx(2 * 1.96 * scores.std() / cases**0.5, rel=0.06)
        widths.append(high - low)
    assert widths[1] < widths[0]
