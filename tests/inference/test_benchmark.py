import csv
import json

import pytest
import SimpleITK as sitk

from rare_lightning.cli import main
from rare_lightning.inference.benchmark import STAGES, UPSAMPLED


def rows_of(folder):
    with (folder / "benchmark.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def words(checkpoint):
    return ["benchmark", "--ckpt_path", str(checkpoint), "--repeats", "1"]


@pytest.mark.slow  # to compile at every level takes half a minute
def test_every_level_and_engine_is_timed(words, tmp_path, capsys):
    engines = ["eager", "bfloat16", "onnx", "openvino"]
    output = tmp_path / "new" / "folder"
    assert main([*words, "--output", str(output), "--size", "[24,32,16]", "--engines", json.dumps(engines)]) == 0
    rows = rows_of(output)
    assert [row["level"] for row in rows] == sorted(["0", "1", "2"] * 5)
    assert {row["engine"] for row in rows} == {*engines, UPSAMPLED}
    for row in rows:
        stages = [float(row[f"{stage} ms"]) for stage in STAGES]
        assert min(stages) > 0
        assert float(row["total ms"]) == pytest.approx(sum(stages))
    by = {(row["level"], row["engine"]): row for row in rows}
    for level in "012":
        eager, unet = by[level, "eager"], by[level, UPSAMPLED]
        ratio = float(unet["total ms"]) / float(eager["total ms"])
        assert float(eager["times faster than up-sampling"]) == pytest.approx(ratio)
        assert float(eager["network: times faster than eager"]) == 1
        assert float(unet["GFLOP"]) == float(by["0", UPSAMPLED]["GFLOP"])  # always level 0
    assert float(by["2", "eager"]["GFLOP"]) < float(by["0", "eager"]["GFLOP"]) / 3
    assert {path.name for path in output.iterdir()} == {f"benchmark.{kind}" for kind in ("csv", "json", "md", "png")}
    table = (output / "benchmark.md").read_text()
    assert table.startswith("noise of 24x32x16 voxels at level 0")
    assert table in capsys.readouterr().out
    record = json.loads((output / "benchmark.json").read_text())
    assert len(record["rows"]) == len(rows)
    assert record["process"]["hardware"]


def test_a_scan_of_the_users(words, scan, tmp_path):
    sitk.WriteImage(scan, str(tmp_path / "mine.nii.gz"))
    given = [*words, "--input", str(tmp_path / "mine.nii.gz"), "--engines", '["eager"]']
    assert main([*given, "--output", str(tmp_path / "out")]) == 0
    assert len(rows_of(tmp_path / "out")) == 6
    assert (tmp_path / "out" / "benchmark.md").read_text().startswith("mine")


def test_several_scans_are_too_many(words, scan, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    for name in ("a.mha", "b.mha"):
        sitk.WriteImage(scan, str(tmp_path / "scans" / name))
    assert main([*words, "--input", str(tmp_path / "scans"), "--output", str(tmp_path / "out")]) == 1
    assert "holds 2 scans; give one" in capsys.readouterr().err


def test_a_scan_that_is_too_small_for_a_level_is_answered_with_a_line(words, tmp_path, capsys):
    words = [*words, "--output", str(tmp_path / "out"), "--engines", '["eager"]']
    assert main([*words, "--size", "[8,8,8]"]) == 1
    error = capsys.readouterr().err
    assert "noise of 8x8x8 voxels at level 0: level 2 image has size" in error
    assert error.strip().endswith("Take a larger --size or --input")
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "0"], "must be positive"),
        (["--size", "[0,4,4]"], "must be positive"),
        (["--input", "nowhere.nii.gz"], "nowhere.nii.gz: no such file"),
        (["--engines", '["fast"]'], "fast"),
    ],
)
def test_wrong_words(words, tmp_path, capsys, more, message):
    assert main([*words, "--output", str(tmp_path / "out"), *more]) != 0
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
