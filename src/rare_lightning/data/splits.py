"""Which case trains, validates, tests. Decided over sorted case ids, so that file order changes nothing."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rare_lightning.errors import UserError, few


@dataclass(frozen=True)
class Split:
    """Case ids by role, each sorted, none in two roles."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    @property
    def cases(self) -> set[str]:
        """Of all roles."""
        return {*self.train, *self.val, *self.test}

    def as_dict(self) -> dict[str, list[str]]:
        """Plain lists, as written to ``splits.json``."""
        return {role: list(ids) for role, ids in asdict(self).items()}


def make_split(case_ids: Iterable[str], seed: int, fold: int, folds: int, test_fraction: float) -> Split:
    """Hold out test cases, then cut the rest into ``folds`` validation folds of (almost) equal size.

    The test cases depend on the seed and their share, so that all folds have the same.

    Args:
        case_ids: In any order.
        seed: Of the shuffle.
        fold: Which fold validates, from 0.
        folds: Number of folds.
        test_fraction: Share of all cases held out for the test, in 0..1.

    Raises:
        UserError: If a role would stay empty or an argument is out of range.
    """
    ids = sorted(case_ids)
    if not 0 <= fold < folds:
        raise UserError(f"data.fold ({fold}) must be >= 0 and < data.folds ({folds})")
    if not 0 <= test_fraction < 1:
        raise UserError(f"data.test_fraction ({test_fraction}) must be >= 0 and < 1")
    shuffled = [ids[i] for i in np.random.default_rng(seed).permutation(len(ids))]
    held_out = round(test_fraction * len(ids)) or int(test_fraction > 0)
    test, rest = shuffled[:held_out], shuffled[held_out:]
    if len(rest) < folds:
        raise UserError(
            f"{len(ids)} cases are too few: {len(rest)} remain after holding out {held_out} for the test, and "
            f"data.folds={folds} needs at least that many. Lower data.folds or data.test_fraction."
        )
    val = rest[fold::folds]
    train = [case_id for case_id in rest if case_id not in set(val)]
    if not train:
        raise UserError(f"no training case remains of {len(ids)} cases with data.folds={folds}; use at least 2 folds")
    return Split(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)))


def read_split(path: Path | str, fold: int, case_ids: Iterable[str]) -> Split:
    """Read a splits file: a list of ``{"train": [...], "val": [...], "test": [...]}``, one per fold.

    nnU-Net's ``splits_final.json`` is such a file without ``test``; cases in neither role are then the test cases.

    Raises:
        UserError: If the file is not of that form, or names unknown cases, or one case in two roles.
    """
    known = set(case_ids)
    if fold < 0:
        raise UserError(f"data.fold ({fold}) must be >= 0")
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
        entry = content[fold]
        train, val = set(map(str, entry["train"])), set(map(str, entry["val"]))
        test = set(map(str, entry["test"])) if "test" in entry else known - train - val
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(
            f"{path}: no split for fold {fold} ({type(error).__name__}: {error}). A splits file is a JSON list with "
            'one {"train": [case ids], "val": [case ids]} per fold, as nnU-Net\'s splits_final.json.'
        ) from error
    unknown = sorted((train | val | test) - known)
    shared = sorted(train & val | train & test | val & test)
    if unknown:
        raise UserError(f"{path}: fold {fold} names cases that dataset.json does not list: {few(unknown)}")
    if shared:
        raise UserError(f"{path}: fold {fold} gives cases two roles: {few(shared)}")
    if not train or not val:
        raise UserError(
            f"{path}: fold {fold} has {len(train)} training and {len(val)} validation cases; both need some"
        )
    return Split(tuple(sorted(train)), tuple(sorted(val)), tuple(sorted(test)))
