import csv
import json
import math
import random
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from rare_lightning.cli import main
from rare_lightning.evaluation.methods import read_methods
from rare_lightning.evaluation.protocol import TRUTHS, Row
from rare_lightning.evaluation.tables import read_cases, summarize, write_cases
from rare_lightning.metrics import Scores

TINY = Path(__file__).parent / "conf" / "tiny.yaml"
PROTOCOL = {"label_downsampling": "majority", "nsd_tolerance_mm": 1.0}
FILES = {f"comparison.{kind}" for kind in ("md", "html", "csv", "json")} | {
    f"{name}.{kind}" for name in ("dice_by_resolution", "cases") for kind in ("png", "svg")
}


def write_run(
    folder, dice=0.7, cases=12, levels=2, classes=("x", "y"), spacing=1.0, protocol=PROTOCOL, seed=0, truths=TRUTHS
):
    """Run folder of a test whose Dice lies around a value."""
    generator = np.random.default_rng(seed)
    rows = [
        Row(
            f"case_{case:02}", level, (spacing * 2**level,) * 3, truth, name,
            Scores(float(np.clip(dice - 0.1 * level + generator.normal(0, 0.05), 0, 1)), 2.0 + level, 0.5, 0.1),
        )
        for case in range(cases) for level in range(levels) for truth in truths for name in classes
    ]  # fmt: skip
    (folder / "test").mkdir(parents=True)
    write_cases(rows, folder / "test" / "cases.csv")
    if protocol:
        (folder / "test" / "summary.json").write_text(json.dumps({"protocol": protocol, "training": None}))
    return folder


def compare(output, *runs):
    """Exit code of the command, and what it wrote as comparison.json."""
    code = main(["compare", *map(str, runs), "--output", str(output)])
    return code, json.loads((output / "comparison.json").read_text()) if code == 0 else None


def lines(folder):
    with open(folder / "comparison.csv", newline="") as file:
        return sorted(csv.reader(file))


@pytest.fixture
def runs(tmp_path):
    return [write_run(tmp_path / "good", 0.8), write_run(tmp_path / "poor", 0.6, seed=1)]


def test_everything_is_written_and_the_better_method_found(runs, tmp_path, capsys):
    code, record = compare(tmp_path / "out", *runs)
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "Dice, fine truth, 12 cases" in printed
    assert str(tmp_path / "out") in printed.splitlines()[-1]
    assert record["reference"] == "good"
    assert len(record["means"]) == 4 * 2 * 2 * 3 * 3  # scores, methods, truths, levels and classes with their means
    for mean in record["means"]:
        assert mean["low"] <= mean["mean"] + 1e-9
        assert mean["mean"] <= mean["high"] + 1e-9
    differences = record["differences"]
    # Level 0 is one test for both truths.
    assert [(d["truth"], d["level"]) for d in differences] == [
        ("level", "0"), ("level", "1"), ("level", "mean"), ("fine", "1"), ("fine", "mean"),
    ]  # fmt: skip
    for difference in differences:
        assert -0.3 < difference["low"] < difference["median"] < difference["high"] < -0.1
        assert difference["rank_biserial"] == -1
        assert difference["p"] == pytest.approx(2**-11)
        assert difference["p_holm"] == pytest.approx(5 * 2**-11)
    page = (tmp_path / "out" / "comparison.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| 0 | 1x1x1 | x"))
    assert re.search(r"\*\*0\.\d{3}\*\* \[0\.\d{3}, 0\.\d{3}\] \| 0\.\d{3} \[", row)
    for name in ("dice_by_resolution", "cases"):
        assert imread(tmp_path / "out" / f"{name}.png").std() > 0


def test_methods_are_compared_at_the_levels_that_all_were_tested_at(tmp_path, capsys):
    """As a tool that was made for one resolution."""
    one, other = write_run(tmp_path / "a", 0.8, levels=3), write_run(tmp_path / "b", 0.6, seed=1, levels=1)
    code, record = compare(tmp_path / "out", one, other)
    assert code == 0
    assert list(record["levels"]) == ["0"]
    assert "Levels 1, 2 are left out, which the tests of b lack." in capsys.readouterr().out
    assert "Levels 1, 2 are left out" in (tmp_path / "out" / "comparison.md").read_text()
    alone = compare(tmp_path / "alone", keep(one, lambda row: row.level == 0), other)[1]
    assert [m["mean"] for m in record["means"]] == [m["mean"] for m in alone["means"]]


def keep(folder, wanted):
    """Take from a test all rows but the wanted ones."""
    path = folder / "test" / "cases.csv"
    write_cases([row for row in read_cases(path) if wanted(row)], path)
    return folder


def coarse(folder, cases):
    """Take from a test level 0 of the first cases."""
    return keep(folder, lambda row: int(row.case[-2:]) >= cases or row.level > 0)


def test_scans_that_are_coarser_than_a_level_lack_it_in_all_methods(tmp_path, capsys):
    one, other = (coarse(write_run(tmp_path / n, d, seed=i), 4) for i, (n, d) in enumerate((("a", 0.8), ("b", 0.6))))
    code, record = compare(tmp_path / "out", one, other)
    assert code == 0
    assert len(record["cases"]) == 12
    assert {mean["undefined"] for mean in record["means"]} == {0}
    tests = {(d["truth"], d["level"]): d["cases"] for d in record["differences"]}
    assert (tests["level", "0"], tests["fine", "1"], tests["fine", "mean"]) == (8, 12, 12)
    summary = summarize(read_cases(one / "test" / "cases.csv"))
    assert [entry["cases"] for entry in summary["fine"]["levels"].values()] == [8, 12]
    means = {tuple(m[k] for k in ("score", "method", "truth", "level", "class")): m["mean"] for m in record["means"]}
    assert means["dice", "a", "fine", "0", "mean"] == pytest.approx(summary["fine"]["levels"]["0"]["mean"]["dice"])
    assert compare(tmp_path / "no", one, write_run(tmp_path / "c", 0.7)) == (1, None)
    message = "different levels of cases: a lacks case_00 at level 0, case_01 at level 0, "
    assert message in capsys.readouterr().err


def test_the_mean_over_levels_is_never_one_of_fewer(tmp_path):
    """Of draws without the only case of a level."""
    one, other = (coarse(write_run(tmp_path / name, 0.8, seed=i), 11) for i, name in enumerate("ab"))
    for run in (one, other):
        path = run / "test" / "cases.csv"
        rows = read_cases(path)
        same = [replace(row, scores=row.scores._replace(dice=0.9 if row.level == 0 else 0.5)) for row in rows]
        write_cases(same, path)
    _, record = compare(tmp_path / "out", one, other)
    means = [m for m in record["means"] if m["score"] == "dice" and m["level"] == "mean"]
    assert means
    assert all([m["low"], m["mean"], m["high"]] == pytest.approx([0.7] * 3) for m in means)


def test_methods_without_a_level_in_common_are_refused(tmp_path, capsys):
    one, other = write_run(tmp_path / "a", levels=1), coarse(write_run(tmp_path / "b"), 12)
    assert compare(tmp_path / "out", one, other) == (1, None)
    assert "no level is common to all: a at 0; b at 1. To compare them" in capsys.readouterr().err


def test_an_earlier_test_of_a_run_is_of_the_run_too(runs):
    earlier = shutil.move(runs[0] / "test", runs[0] / "test-2")
    _, method = read_methods([str(runs[1]), str(earlier)])
    assert (method.name, method.checkpoint) == ("good", runs[0] / "checkpoints" / "best.ckpt")


def test_what_was_scored_against_one_truth_is_compared_by_that(runs, tmp_path, capsys):
    """As by rare evaluate."""
    fine = [write_run(tmp_path / "a", 0.8, truths=["fine"]), write_run(tmp_path / "b", 0.6, seed=1, truths=["fine"])]
    code, record = compare(tmp_path / "out", *fine)
    assert code == 0
    assert {mean["truth"] for mean in record["means"]} == {"fine"}
    assert [(d["truth"], d["level"]) for d in record["differences"]] == [("fine", "0"), ("fine", "1"), ("fine", "mean")]
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    assert "level truth" not in capsys.readouterr().out


def test_truths_that_only_some_were_scored_by_are_left_out(runs, tmp_path, capsys):
    """As of a run beside what rare evaluate found of another tool."""
    other = write_run(tmp_path / "tool", 0.6, truths=["fine"], protocol={**PROTOCOL, "label_downsampling": None})
    both = []
    for order in ([runs[0], other], [other, runs[0]]):
        code, record = compare(tmp_path / order[0].name, *order)
        assert code == 0
        both.append({(m["method"], m["level"], m["class"], m["score"]): m["mean"] for m in record["means"]})
        assert {mean["truth"] for mean in record["means"]} == {"fine"}
        line = "The level truth (label on the level grid) is left out, which the tests of tool lack."
        assert line in capsys.readouterr().out
        page = (tmp_path / order[0].name / "comparison.md").read_text()
        assert line in page
        assert "brought down by" not in page
        assert "NSD forgives 1.0 mm" in page
    assert both[0] == both[1]
    level = write_run(tmp_path / "level", 0.6, truths=["level"])
    assert compare(tmp_path / "none", level, other) == (1, None)
    assert "no truth is common to all: level against level; tool against fine. To" in capsys.readouterr().err


def test_means_are_those_of_rare_test(runs, tmp_path):
    _, record = compare(tmp_path / "out", *runs)
    summary = summarize(read_cases(runs[1] / "test" / "cases.csv"))
    for mean in record["means"]:
        if mean["method"] == "poor" and mean["class"] == "mean":
            entry = summary[mean["truth"]]
            entry = entry["mean"] if mean["level"] == "mean" else entry["levels"][mean["level"]]["mean"]
            assert mean["mean"] == pytest.approx(entry[mean["score"]])


def test_html_needs_nothing_else(runs, tmp_path):
    compare(tmp_path / "out", *runs)
    page = (tmp_path / "out" / "comparison.html").read_text()

    class Check(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag not in ("script", "link", "iframe")
            assert all(value.startswith("data:") for name, value in attrs if name in ("src", "href"))

    Check().feed(page)
    assert "://" not in page
    assert "@import" not in page
    assert page.count("<img") == 2


def test_a_run_compared_with_itself_does_not_differ(runs, tmp_path):
    _, record = compare(tmp_path / "out", runs[0], f"again={runs[0]}")
    for difference in record["differences"]:
        assert {difference[name] for name in ("median", "low", "high", "rank_biserial")} == {0}
        assert (difference["p"], difference["p_holm"]) == (1, 1)
    assert (
        "**" not in (tmp_path / "out" / "comparison.md").read_text().partition("## Dice")[2].partition("## Paired")[0]
    )


def test_order_of_cases_and_runs_changes_nothing(runs, tmp_path):
    _, record = compare(tmp_path / "one", *runs)
    path = runs[1] / "test" / "cases.csv"
    heading, *rows = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(rows)
    path.write_text(heading + "".join(rows))
    _, turned = compare(tmp_path / "other", *reversed(runs))
    assert lines(tmp_path / "one") == lines(tmp_path / "other")
    for one, other in zip(record["differences"], turned["differences"], strict=True):
        assert one["p"] == other["p"]
        assert one["median"] == -other["median"]


def test_tables_of_other_programs_are_compared_on_what_they_hold(runs, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(write_run(tmp_path / "nnunet", 0.7, protocol=None) / "test" / "cases.csv", bare / "table.csv")
    shutil.copy(bare / "table.csv", bare / "cases.csv")
    code, record = compare(tmp_path / "out", runs[0], bare, f"nnU-Net={bare / 'table.csv'}")
    assert code == 0
    assert list(record["methods"]) == ["good", "bare", "nnU-Net"]
    assert (
        "beside the `cases.csv` of bare, nnU-Net names a protocol" in (tmp_path / "out" / "comparison.md").read_text()
    )


def test_what_a_summary_leaves_open_is_not_known(runs, tmp_path):
    (runs[1] / "test" / "summary.json").write_text('{"protocol": null, "training": null, "median_size": null}')
    assert compare(tmp_path / "out", *runs)[0] == 0
    assert "beside the `cases.csv` of poor names a protocol" in (tmp_path / "out" / "comparison.md").read_text()


def test_each_case_may_have_a_spacing_of_its_own(tmp_path):
    """As the scans of a clinic have, and as other programs round it."""
    runs = [write_run(tmp_path / "a", 0.8), write_run(tmp_path / "b", 0.6, seed=1)]
    for run, rounded in zip(runs, ("0.977x0.977x5", "0.9765625x0.9765625x5"), strict=True):
        path = run / "test" / "cases.csv"
        path.write_text(re.sub(r"(case_0[0-7],1),2x2x2", rf"\1,{rounded}", path.read_text()))
    code, record = compare(tmp_path / "out", *runs)
    assert code == 0
    assert record["levels"] == {"0": "1x1x1", "1": "median 0.977x0.977x5"}
    assert "levels 0 (1x1x1 mm), 1 (median 0.977x0.977x5 mm)" in (tmp_path / "out" / "comparison.md").read_text()


def test_what_either_leaves_undefined_counts_for_neither(tmp_path):
    runs = []
    for name, dice in (("a", "0.500000"), ("b", "0.900000")):
        run = write_run(tmp_path / name, 0.5, cases=6, classes=("x", "y"))
        path = run / "test" / "cases.csv"
        table = re.sub(r"^(case_..,.*,x),[\d.]+,", rf"\1,{dice},", path.read_text(), flags=re.MULTILINE)
        # In one case b leaves y empty, rightly, and a does not; nowhere has y an HD95.
        of_y = "," if name == "b" else "0.000000,"
        table = re.sub(r"^(case_00,.*,y),[\d.]+,[\d.]+,", rf"\1,{of_y},", table, flags=re.MULTILINE)
        table = re.sub(r"^(case_.*,y,[\d.]*),[\d.]*,", r"\1,,", table, flags=re.MULTILINE)
        path.write_text(table)
        runs.append(run)
    code, record = compare(tmp_path / "out", *runs)
    assert code == 0
    means = {(m["score"], m["method"], m["truth"], m["level"], m["class"]): m for m in record["means"]}
    assert means["hd95_mm", "a", "fine", "0", "y"]["mean"] is None
    assert means["hd95_mm", "a", "fine", "0", "mean"]["undefined"] == 6
    assert means["dice", "b", "fine", "0", "y"]["undefined"] == 1
    # Alike in y, 0.4 apart in x: half of that, but all of it in the case where y does not count, which is drawn often
    # enough to be half of the cases, but no more.
    [difference] = [d for d in record["differences"] if (d["truth"], d["level"]) == ("fine", "1")]
    assert (difference["median"], difference["high"]) == pytest.approx((0.2, 0.3), abs=1e-6)


def test_too_few_cases_are_said_to_tell_nothing(tmp_path):
    runs = [write_run(tmp_path / name, dice, cases=1, classes=("x",)) for name, dice in (("a", 0.9), ("b", 0.2))]
    code, _ = compare(tmp_path / "out", *runs)
    assert code == 0
    assert "these tests cannot tell" in (tmp_path / "out" / "comparison.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cases": 5}, "different cases: other lacks case_05, case_06, case_07, ... (7 in all). To compare them, test"),
        ({"cases": 13}, "good lacks case_12. "),
        ({"classes": ("x", "z")}, "different classes: other lacks y; good lacks z. "),
        ({"spacing": 0.5}, "case case_00 at level 0 is 1x1x1 mm in good and 0.5x0.5x0.5 mm in other. "),
        ({"protocol": {**PROTOCOL, "nsd_tolerance_mm": 2.0}}, "nsd_tolerance_mm is 1.0 and 2.0. To compare them"),
        ({"protocol": {**PROTOCOL, "label_downsampling": "nearest"}}, "label_downsampling is majority and nearest"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_line(tmp_path, capsys, change, message):
    runs = write_run(tmp_path / "good"), write_run(tmp_path / "other", **change)
    assert compare(tmp_path / "out", *runs) == (1, None)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["good"], "two runs or more"),
        (["good", "good"], "two runs are called good: give one another name, as in OTHER=good"),
        (["good", "good=twice"], "two runs are called good: give one another name, as in OTHER=twice"),
        (["good", "nowhere"], "nowhere: no such run folder or cases.csv"),
        (["good", "empty"], "empty: holds no test/cases.csv or cases.csv: rare test --ckpt_path"),
        (["good", "short"], "short/test/cases.csv: has no line for case case_11, level 1, truth fine, class y"),
        (["good", "twice"], "twice/test/cases.csv: has two lines for case case_11, level 1, truth fine, y"),
        (["good", "wrong"], "wrong/test/cases.csv, line 3: could not convert string to float: 'good'"),
        (["good", "bare"], "bare/test/cases.csv: holds no cases"),
        (["good", "uneven"], "uneven/test/cases.csv: case case_00 has several spacings at level 0; a scan has one"),
        (["good", "garbled"], "garbled/test/summary.json: cannot be read"),
        (["good", "list"], "list/test/summary.json: not a summary.json"),
        (["good", "rules"], "rules/test/summary.json: not a summary.json"),
        (["good", "b=good", "--repeats", "0"], "--repeats (0) and --size [] must be positive"),
    ],
)
def test_wrong_runs_are_refused_in_a_line(tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    for name in ("good", "short", "twice", "wrong", "bare", "uneven", "garbled", "list", "rules"):
        write_run(Path(name))
    Path("empty").mkdir()
    for name, change in {
        "short": lambda rows: rows[:-1],
        "twice": lambda rows: [*rows, rows[-1]],
        "wrong": lambda rows: [*rows[:2], re.sub(r"y,[\d.]+", "y,good", rows[2]), *rows[3:]],
        "bare": lambda rows: rows[:1],
        "uneven": lambda rows: [rows[0], rows[1].replace("1x1x1", "1x1x7"), *rows[2:]],
    }.items():
        path = Path(name) / "test" / "cases.csv"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))
    Path("garbled/test/summary.json").write_text("{")
    Path("list/test/summary.json").write_text("[]")
    Path("rules/test/summary.json").write_text('{"protocol": "mine"}')
    assert compare(Path("out"), *words) == (1, None)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not Path("out").exists()


@pytest.fixture(scope="module")
def tested(phantom, tmp_path_factory):
    """A run of ``rare fit`` and ``rare test``."""
    run = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["--data.root", str(phantom), "--run_dir", str(run), "--data.cache_dir", str(run.parent / "cache")]
    assert main(["fit", "--config", str(TINY), *words]) == 0
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    return run


def test_runs_of_rare_are_timed_and_shown(tested, tmp_path):
    pictureless = shutil.copytree(tested, tmp_path / "pictureless")
    (pictureless / "test" / "slices.npz").unlink()
    shutil.rmtree(pictureless / "checkpoints")
    code, record = compare(tmp_path / "out", tested, f"again={tested}", pictureless, "--repeats", "1")
    assert code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"montage.png", "montage.svg"}
    assert imread(tmp_path / "out" / "montage.png").std() > 0
    assert list(record["costs"]) == ["tiny", "again"]
    assert record["costs"]["tiny"]["parameters"] == record["costs"]["again"]["parameters"] > 0
    assert list(record["costs"]["tiny"]["milliseconds"]) == ["0", "1"]
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "without a picture: pictureless." in page
    assert re.search(r"\| tiny \| [\d,]+ \| [\d.e+]+ ms \(x1\.00\) \|", page)
    assert "| pictureless | - | - | - |" in page
    assert re.search(r"\| tiny \| 1 \| [\d.]+ \| [\d.]+ \| 0 \| ", page)  # epochs, minutes, seed
    assert not any(math.isnan(ms) for ms in record["costs"]["again"]["milliseconds"].values())
    # No picture of an earlier comparison stays.
    assert compare(tmp_path / "out", pictureless, f"b={pictureless}")[0] == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_size_can_be_given_and_timing_left_out(tested, tmp_path, capsys):
    run = shutil.copytree(tested, tmp_path / "run")
    _, record = compare(tmp_path / "out", run, tested, "--size", "[16, 16, 16]", "--repeats", "1")
    assert "16x16x16 voxels at level 0" in record["timed"]
    (run / "test" / "summary.json").unlink()
    _, record = compare(tmp_path / "out", run, f"b={run}")
    assert record["timed"].startswith("Not measured: no `summary.json` names the median size")
    assert record["costs"]["run"]["milliseconds"] == {}
    (run / "checkpoints" / "best.ckpt").write_bytes(b"broken")
    assert compare(tmp_path / "out", run, tested) == (1, None)
    assert "--timing false compares without the networks" in capsys.readouterr().err
    _, record = compare(tmp_path / "out", run, tested, "--timing", "false")
    assert record["costs"] == {}
