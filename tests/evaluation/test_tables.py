import csv
import json
import math
import random
import re

import pytest
from rich.console import Console

from rare_lightning.data.geometry import format_spacing
from rare_lightning.errors import UserError
from rare_lightning.evaluation.protocol import Row
from rare_lightning.evaluation.tables import (
    describe_summary,
    mean_defined,
    read_cases,
    summarize,
    terminal_table,
    write_cases,
    write_summary,
)
from rare_lightning.metrics import Scores

NAN = math.nan


def rows():
    table = []
    for level, case, dice in [(0, "a", 0.9), (0, "b", 0.7), (1, "a", 0.5), (1, "b", NAN)]:
        for truth in ("level", "fine"):
            scores = Scores(dice, 1.0, dice, 0.1)
            spacing = (1.0 * 2**level,) * 3
            table.append(Row(case, level, spacing, truth, "x", scores))
            table.append(Row(case, level, spacing, truth, "y", Scores(0.2, NAN, 0.0, -1.0)))
    return table


def test_means_go_over_cases_then_classes_then_levels():
    summary = summarize(rows())
    fine = summary["fine"]
    assert summary["cases"] == 2
    assert fine["levels"]["0"]["classes"]["x"]["dice"] == pytest.approx(0.8)
    assert fine["levels"]["0"]["mean"]["dice"] == pytest.approx(0.5)
    assert fine["levels"]["1"]["mean"]["dice"] == pytest.approx(0.35)
    assert fine["mean"]["dice"] == pytest.approx(0.425)


def test_undefined_scores_are_counted_and_not_averaged():
    level = summarize(rows())["level"]["levels"]["1"]
    assert level["classes"]["x"]["dice"] == pytest.approx(0.5)
    assert level["classes"]["x"]["dice_undefined"] == 1
    assert level["classes"]["y"]["hd95_mm_undefined"] == 2
    assert math.isnan(level["classes"]["y"]["hd95_mm"])
    assert level["mean"]["hd95_mm"] == pytest.approx(1.0)


def test_where_cases_differ_in_spacing_their_median_is_marked():
    def spacing(*each):
        table = [Row(str(i), 0, mm, "fine", "x", Scores(1, 0, 1, 0)) for i, mm in enumerate(each)]
        return summarize(table)["fine"]["levels"]["0"]["spacing_mm"]

    assert spacing((1.0, 1.0, 3.0), (0.7, 0.7, 5.0), (0.8, 0.8, 2.5)) == "median 0.8x0.8x3"
    assert spacing((0.977, 0.977, 5.0), (0.9765625, 0.9765625, 5.0)) == "0.9768x0.9768x5"


def test_order_of_rows_changes_nothing():
    shuffled = rows()
    random.Random(0).shuffle(shuffled)
    for one, other in ((summarize(rows()), summarize(shuffled)),):
        assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_cases_csv_has_the_protocols_columns(tmp_path):
    write_cases(rows(), tmp_path / "cases.csv")
    with open(tmp_path / "cases.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert list(lines[0]) == ["case", "level", "spacing_mm", "truth", "class", "dice", "hd95_mm", "nsd", "volume_diff"]
    assert len(lines) == 16
    assert lines[0] == {
        "case": "a", "level": "0", "spacing_mm": "1x1x1", "truth": "level", "class": "x",
        "dice": "0.900000", "hd95_mm": "1.000000", "nsd": "0.900000", "volume_diff": "0.100000",
    }  # fmt: skip
    assert lines[1]["hd95_mm"] == ""


def test_cases_are_read_as_they_were_written(tmp_path):
    path, again = tmp_path / "cases.csv", tmp_path / "again.csv"
    write_cases(rows(), path)
    write_cases(read_cases(path), again)
    path.write_bytes(b"\xef\xbb\xbf" + again.read_bytes())  # as Excel saves UTF-8
    write_cases(read_cases(path), again)
    path.write_bytes(path.read_bytes() + b"\r\n")
    assert len(read_cases(path)) == len(rows())
    path.write_bytes(path.read_bytes()[3:-2])
    assert again.read_bytes() == path.read_bytes()
    for row, written in zip(read_cases(path), rows(), strict=True):
        assert repr(row) == repr(written)  # NaN is equal to nothing


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nsd,", "", "line 1: the columns must be case,level,"),
        ("0.700000,1.0", "0.7a,1.0", "line 6: could not convert string to float: '0.7a'"),
        ("b,0,1x1x1", "b,0,1x1", "line 6: not enough values"),
        ("b,0,1x1x1", "b,first,1x1x1", "line 6: invalid literal for int"),
        ("b,0,1x1x1,level", "b,0,1x1x1,truth", "line 6: truth must be level or fine, not 'truth'"),
        ("0.700000,1.0", "70.0,1.0", "line 6: dice is 70; it lies in 0..1, or is empty where undefined"),
        ("0.700000,1.0", "0.7,-1.0", "line 6: hd95_mm is -1; it lies in 0..inf"),
        ("0.700000,1.000000", "0.7,inf", "line 6: hd95_mm is inf; it lies in 0..inf"),
        ("0.700000,1.000000,0.7", "0.7,1,1.7", "line 6: nsd is 1.7; it lies in 0..1"),
        (",-1.000000", ",-1.5", "line 3: volume_diff is -1.5; it lies in -1..inf"),
        ("b,0,1x1x1", "b,-1,1x1x1", "line 6: level -1 of 1x1x1 mm; a level is 0 or more"),
        ("b,0,1x1x1", "b,0,1x1x0", "line 6: level 0 of 1x1x0 mm; a level is 0 or more, and a spacing above 0"),
        ("b,0,1x1x1,", "b,0,", "line 6: has 8 columns, and must have 9"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, old, new, message):
    path = tmp_path / "cases.csv"
    write_cases(rows(), path)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(f"{path}, {message}")):
        read_cases(path)


def test_what_is_no_table_gets_a_line(tmp_path):
    with pytest.raises(UserError, match=r"none.csv: cannot be read \(No such file"):
        read_cases(tmp_path / "none.csv")
    (tmp_path / "picture.csv").write_bytes(b"\x89PNG\xff")
    with pytest.raises(UserError, match=r"picture.csv: not a cases.csv of rare test"):
        read_cases(tmp_path / "picture.csv")


def test_files_appear_whole_or_not_at_all(tmp_path):
    def failing():
        yield rows()[0]
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_cases(failing(), tmp_path / "cases.csv")
    assert list(tmp_path.iterdir()) == []


def test_undefined_is_null_in_json(tmp_path):
    write_summary(summarize(rows()), tmp_path / "summary.json")
    text = (tmp_path / "summary.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["fine"]["levels"]["0"]["classes"]["y"]["hd95_mm"] is None


def test_the_terminal_table_fits_and_holds_the_means(capsys):
    Console(width=80).print(terminal_table(summarize(rows()), "fine"))
    printed = capsys.readouterr().out
    assert "2 cases" in printed
    assert "0.425" in printed
    assert "…" not in printed


def test_the_line_below_says_what_was_measured():
    summary = {
        **summarize(rows()),
        "protocol": {"label_downsampling": "majority", "nsd_tolerance_mm": 1.0},
        "test": {"hardware": "2 CPU cores"},
        "training": {"seed": 3, "commit": "abc", "epochs": 5, "minutes": 1.25},
    }
    expected = "2 cases, NSD tolerance 1 mm, trained for 5 epochs, 1.2 min, seed 3, commit abc, 2 CPU cores"
    assert describe_summary(summary) == expected
    summary["training"] |= {"step_seconds": 0.5, "peak_memory_gib": 2.25}
    assert "1.2 min, 0.50 s a step, peak memory 2.2 GiB, seed 3" in describe_summary(summary)
    summary["training"]["hardware"] = "4 GPUs"
    assert describe_summary(summary).endswith("seed 3, commit abc, 4 GPUs")
    assert describe_summary({**summary, "training": None}).endswith("seed None, commit unknown, 2 CPU cores")


def test_spacing_and_means():
    assert format_spacing((1.0, 0.1 + 0.2, 2.5)) == "1x0.3x2.5"
    assert math.isnan(mean_defined([NAN]))
    assert mean_defined([1, NAN, 3]) == 2


def test_spacings_of_micrometres_keep_their_digits():
    assert format_spacing((0.01235, 0.0004, 1.2000000477)) == "0.01235x0.0004x1.2"
