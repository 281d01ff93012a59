import json

import pytest

from rare_lightning.data.splits import make_split, read_split
from rare_lightning.errors import UserError

IDS = [f"case_{i:02d}" for i in range(23)]


def test_every_case_has_exactly_one_role():
    split = make_split(IDS, seed=1, fold=2, folds=5, test_fraction=0.2)
    assert sorted(split.train + split.val + split.test) == IDS
    assert len(split.test) == 5


def test_folds_cover_everything_but_the_test_cases_which_they_share():
    splits = [make_split(IDS, 0, fold, 4, 0.25) for fold in range(4)]
    assert len({split.test for split in splits}) == 1
    validated = [case for split in splits for case in split.val]
    assert sorted([*validated, *splits[0].test]) == IDS


def test_order_changes_nothing_and_seed_everything():
    split = make_split(IDS, 3, 0, 5, 0.2)
    assert make_split(IDS[::-1], 3, 0, 5, 0.2) == split
    assert make_split(IDS, 4, 0, 5, 0.2).test != split.test


def test_no_test_fraction_holds_out_nothing_and_a_small_one_at_least_one_case():
    assert make_split(IDS, 0, 0, 5, 0.0).test == ()
    assert len(make_split(IDS, 0, 0, 5, 0.001).test) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS, 0, 5, 5, 0.2), r"data.fold \(5\)"),
        ((IDS, 0, -1, 5, 0.2), r"data.fold \(-1\)"),
        ((IDS, 0, 0, 5, 1.0), r"data.test_fraction \(1.0\)"),
        ((IDS[:4], 0, 0, 5, 0.2), "4 cases are too few: 3 remain"),
        ((IDS, 0, 0, 1, 0.2), "no training case remains"),
    ],
)
def test_impossible_splits_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        make_split(*arguments)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_was_written_is_read_back(tmp_path):
    split = make_split(IDS, 0, 1, 5, 0.2)
    assert read_split(write(tmp_path / "s.json", [split.as_dict()]), 0, IDS) == split


def test_nnunet_splits_leave_the_rest_for_the_test(tmp_path):
    folds = [{"train": IDS[:10], "val": IDS[10:15]}, {"train": IDS[5:15], "val": IDS[:5]}]
    split = read_split(write(tmp_path / "splits_final.json", folds), 1, IDS)
    assert split.val == tuple(IDS[:5])
    assert split.test == tuple(IDS[15:])


def test_a_splits_file_may_lie_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "splits.json", [{"train": IDS[:10], "val": IDS[10:]}])
    assert read_split("~/splits.json", 0, IDS).train == tuple(IDS[:10])


def test_no_fold_is_counted_from_the_end(tmp_path):
    path = write(tmp_path / "s.json", [{"train": IDS[:3], "val": IDS[3:]}])
    with pytest.raises(UserError, match=r"data.fold \(-1\) must be >= 0"):
        read_split(path, -1, IDS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "no split for fold 0"),
        ([], "no split for fold 0"),
        ([{"train": IDS}], "no split for fold 0"),
        ({"train": IDS[:3], "val": IDS[3:]}, "no split for fold 0 .*A splits file is a JSON list"),
        ([{"train": ["other"], "val": IDS[:1]}], "names cases .*: other"),
        ([{"train": IDS[:3], "val": IDS[2:4]}], "two roles: case_02"),
        ([{"train": IDS, "val": []}], "0 validation cases"),
    ],
)
def test_a_wrong_splits_file_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read_split(write(tmp_path / "s.json", content), 0, IDS)


def test_a_missing_splits_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.json"):
        read_split(tmp_path / "none.json", 0, IDS)
