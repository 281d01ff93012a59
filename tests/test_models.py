"""Models in the package, and runs that begin from a model."""

import json
import re
import shutil
from pathlib import Path

import pytest
import SimpleITK as sitk
import torch

import rare_lightning
from rare_lightning.cli import main
from rare_lightning.configuration import read_checkpoint
from rare_lightning.data import make_phantom
from rare_lightning.models import find_checkpoint, model_names
from rare_lightning.module import SegmentationModule

CONF = Path(__file__).parent / "conf"
CARDS = Path(__file__).parents[1] / "docs" / "models"


def fit(root, run, *words):
    return main(["fit", "--config", str(CONF / "tiny.yaml"), "--data.root", str(root), "--run_dir", str(run), *words])


@pytest.fixture(scope="module")
def earlier(phantom, tmp_path_factory):
    """Checkpoint of a network of two classes."""
    folder = tmp_path_factory.mktemp("runs") / "earlier"
    assert fit(phantom, folder, "--data.cache_dir", str(folder.parent / "cache")) == 0
    return folder / "checkpoints" / "last.ckpt"


def network_of(checkpoint):
    weights = read_checkpoint(checkpoint)["state_dict"]
    return {name: weight for name, weight in weights.items() if name.startswith("network.")}


def test_models_are_small_listed_and_described(capsys):
    assert main(["models"]) == 0
    printed = capsys.readouterr().out
    assert model_names()
    assert sum(find_checkpoint(name).stat().st_size for name in model_names()) < 15e6
    for name in model_names():
        assert name in printed
        card = (CARDS / f"{name}.md").read_text()
        assert all(word in card for word in ("CC-BY-SA 4.0", "not a medical device", "95 % intervals", "rare fit"))
        dice = read_checkpoint(name)["card"]["dice"].values()
        assert all(f"{mean:.3f}" in printed and f"{mean:.3f}" in card for mean in dice)
        floats = [weight for weight in network_of(name).values() if weight.is_floating_point()]
        assert {weight.dtype for weight in floats} == {torch.float16}


def test_a_file_goes_before_a_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("hippocampus") != Path("hippocampus")
    Path("hippocampus").touch()
    assert find_checkpoint("hippocampus") == Path("hippocampus")


def test_a_model_segments_scans_by_its_name(phantom, tmp_path):
    scan = sorted((phantom / "imagesTr").glob("*.nii.gz"))[0]
    words = ["--input", str(scan), "--output", str(tmp_path / "out"), "--accelerator", "cpu", "--num_workers", "0"]
    assert main(["predict", "--ckpt_path", "hippocampus", *words]) == 0
    labels = sitk.ReadImage(str(tmp_path / "out" / scan.name))
    assert labels.GetSize() == sitk.ReadImage(str(scan)).GetSize()
    assert rare_lightning.load("hippocampus").classes == ["background", "Anterior", "Posterior"]


def test_a_model_is_tested_into_a_folder_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--ckpt_path", "hippocampus", "--data.root", "nowhere"]) == 1
    assert "nowhere/dataset.json: not found" in capsys.readouterr().err


def test_a_model_is_no_run_to_go_on_with(phantom, tmp_path, capsys):
    assert fit(phantom, tmp_path / "run", "--ckpt_path", "hippocampus") == 1
    assert "holds weights alone. Begin from them by --model.init_from" in capsys.readouterr().err


def test_training_begins_from_a_model(phantom, earlier, tmp_path, caplog):
    still = ["--model.optimizer.init_args.lr", "0", "--model.optimizer.init_args.weight_decay", "0"]
    still += ["--model.scheduler", "constant"]
    with caplog.at_level("INFO"):
        assert fit(phantom, tmp_path / "same", "--model.init_from", str(earlier), *still) == 0
    assert f"Weights of {earlier}, all of them" in caplog.text
    last = tmp_path / "same" / "checkpoints" / "last.ckpt"
    torch.testing.assert_close(network_of(last), network_of(earlier), rtol=0, atol=0)
    earlier.rename(tmp_path / "moved.ckpt")  # what has begun does not need it
    try:
        more = ["--model.init_from", str(earlier), *still, "--trainer.max_epochs", "2", "--resume"]
        assert fit(phantom, tmp_path / "same", *more) == 0
        assert main(["test", "--ckpt_path", str(last)]) == 0
        SegmentationModule.load_from_checkpoint(last, weights_only=True)
    finally:
        (tmp_path / "moved.ckpt").rename(earlier)


@pytest.mark.parametrize(("fold", "seen"), [("0", False), ("1", True)])
def test_cases_that_a_model_has_seen_are_said(phantom, earlier, tmp_path, caplog, fold, seen):
    more = ["--model.init_from", str(earlier), "--data.fold", fold, "--trainer.fast_dev_run", "1"]
    with caplog.at_level("INFO"):
        assert fit(phantom, tmp_path / "run", *more) == 0
    train = read_checkpoint(earlier)["DecathlonDataModule"]["split"]["train"]  # the other fold's cases to validate with
    said = f"{earlier} was trained or validated on 2 cases"
    lines = [record.getMessage() for record in caplog.records if said in record.getMessage()]
    assert len(lines) == seen
    assert all(case in line for line in lines for case in train)


def test_tests_and_comparisons_say_what_the_beginning_had_seen(phantom, earlier, tmp_path, capsys, caplog):
    run = tmp_path / "run"
    # The test cases of another split, which the earlier training knows in part.
    more = ["--model.init_from", str(earlier), "--data.seed", "5"]
    assert fit(phantom, run, *more) == 0
    best = run / "checkpoints" / "last.ckpt"
    known = read_checkpoint(earlier)["DecathlonDataModule"]["split"]
    tested = read_checkpoint(best)["DecathlonDataModule"]["split"]["test"]
    seen = sorted({*known["train"], *known["val"]} & {*tested})
    assert seen
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(best)]) == 0
    assert f"{len(seen)} of them known to {earlier.name}, from which" in " ".join(capsys.readouterr().out.split())
    assert json.loads((run / "test" / "summary.json").read_text())["cases_seen_before"] == seen
    more = ["--model.init_from", str(best), "--data.seed", "5", "--trainer.fast_dev_run", "1"]
    with caplog.at_level("INFO"):
        assert fit(phantom, tmp_path / "third", *more) == 0  # whose first ancestor knows them
    assert f"{best} was trained or validated on {len(seen)} cases" in caplog.text
    (tmp_path / "other" / "test").mkdir(parents=True)
    shutil.copy(run / "test" / "cases.csv", tmp_path / "other" / "test")
    words = ["compare", str(run), str(tmp_path / "other"), "--output", str(tmp_path / "both"), "--timing", "false"]
    capsys.readouterr()
    assert main(words) == 0
    assert f"validated on {len(seen)} of these cases: its scores flatter." in capsys.readouterr().out
    page = (tmp_path / "both" / "comparison.md").read_text()
    assert f"which was trained or validated on {len(seen)} of these cases: its scores flatter." in page


def test_heads_are_made_anew_for_other_classes(earlier, tmp_path, caplog):
    make_phantom(str(tmp_path / "task"), kind="brain_tumour", cases=6, size=[24, 28, 24])
    more = ["--model.init_from", str(earlier), "--model.optimizer.init_args.lr", "0"]
    with caplog.at_level("INFO"):
        assert fit(tmp_path / "task", tmp_path / "run", *more) == 0
    (line,) = [record.getMessage() for record in caplog.records if "but for" in record.getMessage()]
    new = line.split("but for ")[1].split(", ")
    assert all("heads" in name or "encoder.0" in name or "gateways" in name for name in new), new
    assert any("heads" in name for name in new)


def test_heads_are_made_anew_for_as_many_classes_in_another_order(phantom, earlier, tmp_path, caplog):
    task = shutil.copytree(phantom, tmp_path / "task")
    description = json.loads((task / "dataset.json").read_text())
    names = description["labels"]
    names["1"], names["2"] = names["2"], names["1"]
    (task / "dataset.json").write_text(json.dumps(description))
    with caplog.at_level("INFO"):
        assert fit(task, tmp_path / "run", "--model.init_from", str(earlier), "--trainer.fast_dev_run", "1") == 0
    (line,) = [record.getMessage() for record in caplog.records if "but for" in record.getMessage()]
    new = line.split("but for ")[1].split(", ")
    assert new == [f"heads.{level}.conv.{part}" for level in range(2) for part in ("bias", "weight")]


def test_what_goes_on_does_not_begin_anew(phantom, earlier, tmp_path, caplog):
    more = ["--ckpt_path", str(earlier), "--model.init_from", "hippocampus", "--trainer.max_epochs", "2"]
    with caplog.at_level("INFO"):
        assert fit(phantom, tmp_path / "run", *more, "--trainer.limit_train_batches", "1") == 0
    assert "model.init_from is hippocampus and was None; the checkpoint's holds" in caplog.text
    assert "Weights of" not in caplog.text


def test_another_network_is_no_beginning(phantom, earlier, tmp_path, capsys):
    more = ["--model.init_from", str(earlier), "--model.network.init_args.features", "4"]
    assert fit(phantom, tmp_path / "run", *more) == 1
    assert "weights fit the network (model.network.init_args.features is 4 and was " in capsys.readouterr().err
    assert fit(phantom, tmp_path / "run", "--model.init_from", str(earlier), "--model.network", "UNet") == 1
    assert "weights fit the network (model.network.class_path is UNet and was RAREUNet" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", model_names())
def test_a_model_is_begun_from_by_the_settings_on_its_card(phantom, tmp_path, monkeypatch, name):
    monkeypatch.chdir(CARDS.parents[1])
    (command,) = re.findall(r"^ +rare fit (.*) --data.root", (CARDS / f"{name}.md").read_text(), re.MULTILINE)
    words = [*command.split(), "--data.root", str(phantom)]
    words += ["--data.folds", "2", "--data.num_workers", "0", "--trainer.fast_dev_run", "1"]
    assert main(["fit", *words, "--model.init_from", name, "--run_dir", str(tmp_path / "run")]) == 0
