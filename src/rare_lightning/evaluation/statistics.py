"""Intervals, paired tests and their correction; what each is for stands in docs/protocol.md."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata, wilcoxon

RESAMPLES = 5000
CONFIDENCE = 0.95
Array = np.ndarray[Any, Any]


class PairedTest(NamedTuple):
    """Differences of two methods on the same cases.

    Attributes:
        cases: Whose difference is defined.
        median: Of the differences; NaN without any.
        low: Lower end of the median's 95 % bootstrap interval.
        high: Its upper end.
        rank_biserial: Matched-pairs rank-biserial correlation in -1..1: share of the rank sum that speaks for the
            method, minus the share that speaks against it.
        p: Of the two-sided Wilcoxon signed-rank test.
    """

    cases: int
    median: float
    low: float
    high: float
    rank_biserial: float
    p: float


def resample_cases(cases: int) -> Array:
    """Indices ``(RESAMPLES, cases)`` of cases drawn with replacement, always the same ones."""
    return np.random.default_rng(0).integers(cases, size=(RESAMPLES, cases))


def resample_counts(cases: int) -> Array:
    """How often each of :func:`resample_cases` drew each case, ``(RESAMPLES, cases)``."""
    return np.stack([np.bincount(drawn, minlength=cases) for drawn in resample_cases(cases)]).astype(float)


def mean_over_cases(scores: Array, counts: Array) -> Array:
    """Mean of the defined scores when each case counts as often as it was drawn.

    Args:
        scores: ``(..., cases)``, NaN where undefined.
        counts: ``(draws, cases)``.

    Returns:
        ``(draws, ...)``, NaN where no score is defined.
    """
    defined = ~np.isnan(scores)
    totals, numbers = (
        counts @ values.reshape(-1, scores.shape[-1]).T
        for values in (np.where(defined, scores, 0.0), defined.astype(float))
    )
    return _ratio(totals, numbers).reshape(len(counts), *scores.shape[:-1])


def mean_where_defined(values: Array, axis: int) -> Array:
    """Mean without the NaNs; NaN where there is nothing else."""
    return _ratio(np.nansum(values, axis), (~np.isnan(values)).sum(axis))


def interval(draws: Array) -> Array:
    """Percentile interval ``(2, ...)`` of bootstrap draws ``(draws, ...)``; draws that are NaN do not count."""
    ends = np.full((2, *draws.shape[1:]), np.nan)
    known = ~np.isnan(draws).all(0)
    if known.any():
        ends[:, known] = np.nanquantile(draws[:, known], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    return ends


def paired_test(differences: Array) -> PairedTest:
    """Compare two methods by their differences ``(cases,)``, NaN where undefined.

    Differences of 0 take no side and are left out of the ranks, as Wilcoxon did; if all are 0, p is 1.
    """
    known = np.round(differences[~np.isnan(differences)], 9)  # what rounding tells apart is a tie
    if not known.size:
        return PairedTest(0, np.nan, np.nan, np.nan, np.nan, np.nan)
    low, high = interval(np.median(known[resample_cases(known.size)], axis=1))
    decided = known[known != 0]
    ranks = rankdata(np.abs(decided))
    balance = float((np.sign(decided) * ranks).sum() / ranks.sum()) if decided.size else 0.0
    p = float(wilcoxon(decided).pvalue) if decided.size else 1.0
    return PairedTest(known.size, float(np.median(known)), float(low), float(high), balance, p)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values of a family of tests, in the order given; NaN is no test and stays NaN."""
    values = np.asarray(p, dtype=float)
    order = np.argsort(values, kind="stable")[: int((~np.isnan(values)).sum())]  # NaN sorts last
    steps = np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1))
    adjusted = np.full(values.shape, np.nan)
    adjusted[order] = np.minimum(steps, 1.0)
    return list(map(float, adjusted))


def _ratio(totals: Array, numbers: Array) -> Array:
    """NaN where there is nothing to divide by."""
    means: Array = np.divide(totals, numbers, out=np.full(totals.shape, np.nan), where=numbers > 0)
    return means
