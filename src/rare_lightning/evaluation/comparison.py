"""Tests of several methods on the same cases -> their means with intervals, and paired tests against the first one."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from rare_lightning.evaluation.methods import Method, refuse_different, shared_levels, shared_truths
from rare_lightning.evaluation.protocol import TRUTH_LABELS, TRUTHS, Truth
from rare_lightning.evaluation.statistics import (
    Array,
    PairedTest,
    holm,
    interval,
    mean_over_cases,
    mean_where_defined,
    paired_test,
    resample_counts,
)
from rare_lightning.evaluation.tables import spacing_of
from rare_lightning.metrics import Scores

MEAN = "mean"  # of the levels, of the classes


class Mean(NamedTuple):
    """Mean score over cases, with the ends of its 95 % bootstrap interval; NaN where no case defines it.

    Attributes:
        mean: Over cases, then over classes and levels where those are meant.
        low: Lower end.
        high: Upper end.
        undefined: Scores that are left out.
    """

    mean: float
    low: float
    high: float
    undefined: int


class Difference(NamedTuple):
    """A paired test of per-case Dice of a method against the reference.

    Attributes:
        method: Whose Dice less the reference's is tested.
        truth: Scored against which. At level 0 both are one, and ``level`` stands for it.
        level: Or ``mean``, of all levels.
        test: What it found.
        p_holm: Its p-value, adjusted for all tests of the comparison.
    """

    method: str
    truth: Truth
    level: str
    test: PairedTest
    p_holm: float


class Comparison:
    """Methods that were tested on the same cases and classes, by the same protocol, and at some of the same levels.

    Args:
        methods: The first is the reference.

    Attributes:
        cases: Case ids.
        levels: Those that all methods were tested at, and ``mean`` at last -> spacing in mm, or its median.
        classes: Foreground classes in the reference's order, and ``mean`` at last if there are several.
        truths: Those that all methods were scored against, ``fine`` last.
        means: By score, method, truth, level and class.
        differences: Of all methods but the reference.

    Raises:
        UserError: If they were tested on something else, or something differently.
    """

    def __init__(self, methods: Sequence[Method]) -> None:
        refuse_different(methods)
        self.methods = list(methods)
        self.names = [method.name for method in methods]
        levels = shared_levels(methods)
        rows = [row for row in methods[0].rows if row.level in levels]
        self.cases = sorted({row.case for row in rows})
        self.truths = shared_truths(methods)
        by_level = {level: [row for row in rows if row.level == level] for level in levels}
        self.levels = {str(level): spacing_of(of_level) for level, of_level in by_level.items()}
        classes = list(dict.fromkeys(row.class_name for row in rows))
        keys = list(product(self.names, self.truths, map(int, self.levels), classes, self.cases))
        found = {(m.name, r.truth, r.level, r.class_name, r.case): r.scores for m in methods for r in m.rows}
        nothing = [math.nan] * len(Scores._fields)  # of a scan that is coarser than the level
        shape = (len(methods), len(self.truths), len(self.levels), len(classes), len(self.cases), len(Scores._fields))
        scores = np.moveaxis(np.array([found.get(key, nothing) for key in keys], dtype=float).reshape(shape), -1, 0)
        self.levels[MEAN] = ""
        self.classes = [*classes, MEAN] if len(classes) > 1 else classes
        self._lacking = np.array(
            [len(self.cases) - len({row.case for row in of_level}) for of_level in by_level.values()]
        )
        self._dice: Array = scores[Scores._fields.index("dice")]
        self.means = self._means(scores)
        self.differences = self._differences()

    @property
    def left_out(self) -> str:
        """Sentences on the truth and the levels that some methods lack; empty if there is none."""
        return " ".join(filter(None, [self._truth_left_out(), self._levels_left_out()]))

    def _levels_left_out(self) -> str:
        known = {method.name: {row.level for row in method.rows} for method in self.methods}
        others = sorted(set().union(*known.values()) - {int(level) for level in self.levels if level != MEAN})
        lacking = [name for name, levels in known.items() if not levels.issuperset(others)]
        listed = f"Level {others[0]} is" if len(others) == 1 else f"Levels {', '.join(map(str, others))} are"
        return f"{listed} left out, which the tests of {', '.join(lacking)} lack." if others else ""

    def _truth_left_out(self) -> str:
        for truth in TRUTHS:
            lacking = [method.name for method in self.methods if truth not in method.truths]
            if 0 < len(lacking) < len(self.methods):
                label = TRUTH_LABELS[truth]
                return f"The {truth} truth ({label}) is left out, which the tests of {', '.join(lacking)} lack."
        return ""

    def case_dice(self, method: str) -> Array:
        """Mean Dice of each case over classes, of the reference and of a method.

        A class that either of them leaves undefined in a case counts for neither.

        Returns:
            ``(2, truths, levels + 1, cases)``: the reference's and the method's; the last level is their mean.
        """
        pair = self._dice[[0, self.names.index(method)]]
        pair = np.where(np.isnan(pair).any(0), np.nan, pair)
        by_level = mean_where_defined(pair, axis=-2)
        return np.concatenate([by_level, mean_where_defined(by_level, axis=-2)[..., None, :]], axis=-2)

    def median_case(self) -> str:
        """The case in which the reference has its median Dice against the last truth, mean over levels."""
        dice = self.case_dice(self.names[0])[0, -1, -1]
        order = [self.cases[i] for i in np.argsort(dice, kind="stable") if not np.isnan(dice[i])] or self.cases
        return order[len(order) // 2]

    def _means(self, scores: Array) -> dict[tuple[str, str, Truth, str, str], Mean]:
        cases = len(self.cases)
        whole = mean_over_cases(scores, np.ones((1, cases)))
        means = self._with_means(whole)[0]
        draws = mean_over_cases(scores, resample_counts(cases))
        low, high = interval(self._with_means(draws, lacking=np.isnan(draws) & ~np.isnan(whole)))
        undefined = np.isnan(scores).sum(-1) - self._lacking[:, None]
        if MEAN in self.classes:
            undefined = np.concatenate([undefined, undefined.sum(-1, keepdims=True)], axis=-1)
        undefined = np.concatenate([undefined, undefined.sum(-2, keepdims=True)], axis=-2)
        keys = product(Scores._fields, self.names, self.truths, self.levels, self.classes)
        columns = (values.ravel().tolist() for values in (means, low, high, undefined))
        return {key: Mean(*values) for key, *values in zip(keys, *columns, strict=True)}

    def _with_means(self, values: Array, lacking: Array | None = None) -> Array:
        """Adds to ``(..., levels, classes)`` the mean over classes, if there are several, and that over levels.

        No mean is taken over what includes a value that is ``lacking``: it would be that of others.
        """
        for axis in (-1, -2) if MEAN in self.classes else (-2,):
            mean = mean_where_defined(values, axis)
            if lacking is not None:
                lacks = lacking.any(axis)
                mean = np.where(lacks, np.nan, mean)
                lacking = np.concatenate([lacking, np.expand_dims(lacks, axis)], axis)
            values = np.concatenate([values, np.expand_dims(mean, axis)], axis)
        return values

    def _differences(self) -> list[Difference]:
        keys, tests = [], []
        for name in self.names[1:]:
            reference, method = self.case_dice(name)
            for (t, truth), (i, level) in product(enumerate(self.truths), enumerate(self.levels)):
                if (truth, level) == ("fine", "0") and "level" in self.truths:
                    continue  # the same test as that of the level truth
                keys.append((name, truth, level))
                tests.append(paired_test(method[t, i] - reference[t, i]))
        adjusted = holm([test.p for test in tests])
        return [Difference(*key, test, p) for key, test, p in zip(keys, tests, adjusted, strict=True)]
