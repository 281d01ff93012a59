import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
import yaml
from matplotlib.image import imread

import rare_lightning
from rare_lightning import __version__
from rare_lightning.cli import COMMANDS, main
from rare_lightning.commands.training import RareCLI
from rare_lightning.data.dataset import WholeVolumes
from rare_lightning.evaluation.slices import read_slices
from rare_lightning.module import SegmentationModule

CONF = Path(__file__).parent / "conf"
CONFIGS = Path(__file__).parents[1] / "configs"
TINY = ["--config", str(CONF / "tiny.yaml")]


def fit(phantom, run, *words):
    return main(["fit", *TINY, "--data.root", str(phantom), "--run_dir", str(run), *words])


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """A finished run of ``rare fit``."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert fit(phantom, folder, "--data.cache_dir", str(folder.parent / "cache")) == 0
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "run")


def read_cases(folder):
    with open(folder / "test" / "cases.csv", newline="") as file:
        return list(csv.DictReader(file))


def last_line(text):
    return text.strip().splitlines()[-1]


def assert_one_line(message, error):
    """The last line says it, and no traceback is above."""
    assert message in last_line(error)
    assert "Traceback" not in error


def test_fit_leaves_everything_in_its_run_folder(run):
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["network"]["init_args"]["features"] == 2
    [split] = json.loads((run / "splits.json").read_text())
    assert sorted(map(len, split.values())) == [2, 2, 2]
    with open(run / "logs" / "fit" / "metrics.csv", newline="") as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {
        "train/loss_epoch", "train/consistency", "train/level_1/cross_entropy", "train/level_1/consistency",
        "train/dice/level_0/Anterior", "val/dice", "val/dice/level_1", "val/dice/level_1/Posterior", "val/loss",
    } <= logged  # fmt: skip


def test_a_checkpoint_alone_can_be_tested(copied, capsys):
    assert main(["test", "--ckpt_path", str(copied / "checkpoints" / "best.ckpt")]) == 0
    printed = capsys.readouterr().out
    assert "level truth" in printed
    assert "fine truth" in printed
    assert "commit" in printed
    assert str(copied / "test") in last_line(printed)
    [split] = json.loads((copied / "splits.json").read_text())
    rows = read_cases(copied)
    assert {row["case"] for row in rows} == set(split["test"])
    assert len(rows) == 2 * 2 * 2 * 2  # cases, levels, truths, classes
    summary = json.loads((copied / "test" / "summary.json").read_text())
    assert summary["training"]["epochs"] == 1
    assert summary["training"]["seed"] == 0
    assert summary["cases"] == 2
    assert summary["protocol"] == {"label_downsampling": "majority", "nsd_tolerance_mm": 1.0}
    assert len(summary["median_size"]) == 3
    for case in split["test"]:
        pieces, names = read_slices(copied / "test" / "slices.npz", case)
        assert names == ["background", "Anterior", "Posterior"]
        assert [piece.level for piece in pieces] == [0, 1]
    for name in ("dice_by_resolution.png", "montage.png"):
        assert imread(copied / "test" / name).std() > 0


def test_a_checkpoint_that_does_not_say_how_its_network_is_made_gets_one_line(copied, capsys):
    best = copied / "checkpoints" / "best.ckpt"
    content = torch.load(best, weights_only=True)
    del content["hyper_parameters"]["network"]
    torch.save(content, best)
    assert main(["test", "--ckpt_path", str(best)]) == 1
    assert "best.ckpt: does not say how its network is made" in last_line(capsys.readouterr().err)


def test_regions_are_scored_in_place_of_the_classes(copied, capsys):
    words = ["test", "--ckpt_path", str(copied / "checkpoints" / "best.ckpt")]
    assert main([*words, "--data.regions", "{whole: [1, 2], end: [2]}"]) == 0
    assert "Dice whole" in capsys.readouterr().out
    regions = read_cases(copied)
    assert main(words) == 0
    classes = read_cases(copied)
    assert {row["class"] for row in regions} == {"whole", "end"}
    assert {row["class"] for row in classes} == {"Anterior", "Posterior"}
    of_one_class = [{**row, "class": "Posterior"} for row in regions if row["class"] == "end"]
    assert of_one_class == [row for row in classes if row["class"] == "Posterior"]
    assert main([*words, "--data.regions", "{whole: [1, 3]}"]) == 1
    assert "data.regions: regions must be lists of label values from 1 to 2" in last_line(capsys.readouterr().err)


def test_a_data_set_of_regions_trains_and_is_scored_by_them(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path / "task")
    description = json.loads((root / "dataset.json").read_text())
    description["labels"] = {"background": 0, "hippocampus": [1, 2], "tail": 2}
    (root / "dataset.json").write_text(json.dumps(description))
    assert fit(root, tmp_path / "run") == 0
    checkpoint = str(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert rare_lightning.load(checkpoint).classes == ["background", "label 1", "tail"]
    assert main(["test", "--ckpt_path", checkpoint]) == 0
    assert {row["class"] for row in read_cases(tmp_path / "run")} == {"hippocampus", "tail"}


def test_a_checkpoint_of_before_upsampling_could_be_chosen_brings_scans_up(copied, phantom, tmp_path, capsys):
    for name in ("best", "last"):
        content = torch.load(copied / "checkpoints" / f"{name}.ckpt", weights_only=True)
        del content["datamodule_hyper_parameters"]["upsample"]
        torch.save(content, copied / "checkpoints" / f"{name}.ckpt")
    assert fit(phantom, copied, "--resume", "--trainer.max_epochs", "2") == 1
    assert "data.upsample is False and was True" in last_line(capsys.readouterr().err)
    root = shutil.copytree(phantom, tmp_path / "task")
    for path in root.glob("*Tr/*.nii.gz"):
        scan = nib.load(path)
        nib.save(nib.Nifti1Image(scan.get_fdata(), scan.affine * [[2], [2], [2], [1]]), path)
    words = ["test", "--ckpt_path", str(copied / "checkpoints" / "best.ckpt"), "--data.root", str(root)]
    levels = []
    for more in ([], ["--data.upsample", "false"]):
        assert main([*words, *more]) == 0
        levels.append({row["level"] for row in read_cases(copied)})
    assert levels == [{"0", "1"}, {"1"}]


def test_a_test_needs_no_training_scans(copied, phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path / "task")
    [split] = json.loads((copied / "splits.json").read_text())
    for case in split["train"]:
        (root / "imagesTr" / f"{case}.nii.gz").unlink()
    words = ["test", "--ckpt_path", str(copied / "checkpoints" / "best.ckpt"), "--data.root", str(root)]
    assert main(words) == 0


def test_data_that_are_gone_are_asked_for(phantom, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "task")
    assert fit(root, tmp_path / "run") == 0
    root.rename(tmp_path / "moved")
    words = ["test", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "best.ckpt")]
    assert main(words) == 1
    assert_one_line(f"its data are not at {root}: give --data.root, the folder of the task", capsys.readouterr().err)
    assert main([*words, f"--data.root={tmp_path / 'moved'}"]) == 0


def test_a_beginning_at_another_spacing_is_said(run, phantom, tmp_path, caplog):
    words = ["--model.init_from", str(run / "checkpoints" / "best.ckpt"), "--data.spacing", "[1, 1, 2]"]
    assert fit(phantom, tmp_path / "again", *words, "--trainer.fast_dev_run", "1") == 0
    assert "was trained with a level 0 of 1x1x1 mm, which is 1x1x2 mm now: data.spacing chooses it" in caplog.text


def test_testing_twice_gives_the_same(copied):
    tables = []
    for _ in range(2):
        main(["test", "--ckpt_path", str(copied / "checkpoints" / "last.ckpt")])
        tables.append((copied / "test" / "cases.csv").read_bytes())
    assert tables[0] == tables[1]


def test_another_test_does_not_write_over_the_report(copied, monkeypatch, capsys):
    reports = []
    for name in ("best", "last", "last"):
        words = ["test", "--ckpt_path", str(copied / "checkpoints" / f"{name}.ckpt")]
        monkeypatch.setattr("sys.argv", ["rare", *words])
        assert main(words) == 0
        reports.append(json.loads((copied / "test" / "summary.json").read_text()))
        printed = capsys.readouterr().out
        assert ("rare test --ckpt_path best.ckpt) lies in" in " ".join(printed.split())) == (len(reports) == 2)
    kept = json.loads((copied / "test-2" / "summary.json").read_text())
    assert kept == reports[0] != reports[1] == reports[2]
    assert not (copied / "test-3").exists()


def test_order_of_the_cases_in_dataset_json_changes_nothing(run, phantom, tmp_path):
    shuffled = shutil.copytree(phantom, tmp_path / "task")
    description = json.loads((shuffled / "dataset.json").read_text())
    description["training"].reverse()
    (shuffled / "dataset.json").write_text(json.dumps(description))
    tables = []
    for root in (phantom, shuffled):
        folder = tmp_path / root.name
        words = ["--data.root", str(root), "--run_dir", str(folder)]
        assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), *words]) == 0
        tables.append(read_cases(folder))
    assert tables[0] == tables[1]


def test_labelled_cases_that_a_checkpoint_does_not_know_are_tested(run, phantom, tmp_path, capsys):
    """Of another site, fewer than the folds of the training, and prepared as its cases were."""
    assert main(["phantom", str(tmp_path / "site"), "--cases", "3", "--seed", "7", "--size", "[24,28,24]"]) == 0
    for folder in ("imagesTr", "labelsTr"):
        for path in (tmp_path / "site" / folder).iterdir():
            path.rename(path.with_name(f"site_{path.name}"))
    listing = tmp_path / "site" / "dataset.json"
    listing.write_text(listing.read_text().replace("hippocampus_", "site_hippocampus_"))
    words = ["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--data.root", str(tmp_path / "site")]
    cache = tmp_path / "cache"
    words += ["--run_dir", str(tmp_path / "test"), "--data.cache_dir", str(cache)]
    assert main([*words, "--data.test_fraction", "0.9"]) == 1
    assert_one_line("leave out data.test_fraction", capsys.readouterr().err)
    assert main(words) == 0
    assert {row["case"] for row in read_cases(tmp_path / "test")} == {f"site_hippocampus_{i:03}" for i in (1, 2, 3)}
    assert len(list(cache.iterdir())) == 3


def test_cases_of_other_data_that_bear_known_names_are_named(run, tmp_path, caplog):
    assert main(["phantom", str(tmp_path / "site"), "--cases", "7", "--seed", "7", "--size", "[24,28,24]"]) == 0
    words = ["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--run_dir", str(tmp_path / "test")]
    assert main([*words, "--data.root", str(tmp_path / "site")]) == 0
    tested = {row["case"] for row in read_cases(tmp_path / "test")}
    assert "hippocampus_007" in tested
    assert f"{7 - len(tested)} of 7 cases are not tested" in caplog.text


def test_cases_that_a_split_leaves_out_stay_out(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path / "task")
    ids = [f"hippocampus_{i:03}" for i in range(1, 7)]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ids[:3], "val": ids[3:4], "test": ids[4:5]}]))
    (root / "imagesTr" / f"{ids[5]}.nii.gz").write_bytes(b"broken")
    run, words = tmp_path / "run", ("--data.splits_file", str(splits), "--resume")
    for _ in range(2):
        assert fit(root, run, *words) == 0
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "last.ckpt")]) == 0
    assert {row["case"] for row in read_cases(run)} == {ids[4]}


def test_a_checkpoint_brings_the_split_whose_file_is_gone(phantom, tmp_path, capsys, caplog):
    ids = [f"hippocampus_{i:03}" for i in range(1, 7)]
    splits = tmp_path / "splits.json"
    splits.write_text(json.dumps([{"train": ids[:3], "val": ids[3:4], "test": ids[4:]}]))
    run = tmp_path / "run"
    assert fit(phantom, run, "--data.splits_file", str(splits), "--data.fold", "0") == 0
    splits.unlink()
    smaller = shutil.copytree(phantom, tmp_path / "task")
    description = json.loads((smaller / "dataset.json").read_text())
    description["training"] = [entry for entry in description["training"] if ids[5] not in entry["image"]]
    (smaller / "dataset.json").write_text(json.dumps(description))
    capsys.readouterr()
    words = ["--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--data.root", str(smaller)]
    assert main(["validate", *words]) == 0
    assert main(["test", *words]) == 0
    assert {row["case"] for row in read_cases(run)} == {ids[4]}
    assert caplog.text.count(f"there is no {ids[5]}") == 2  # once by each command
    gone = [entry for entry in description["training"] if ids[0] not in entry["image"]]
    (smaller / "dataset.json").write_text(json.dumps({**description, "training": gone}))
    more = ["--ckpt_path", str(run / "checkpoints" / "last.ckpt"), "--trainer.max_epochs", "2"]
    assert fit(smaller, tmp_path / "on", *more) == 1
    assert_one_line(
        f"lacks cases that the checkpoint was trained or validated with ({ids[0]})", capsys.readouterr().err
    )


def test_validate_repeats_the_score_of_the_checkpoint(copied, capsys):
    path = copied / "checkpoints" / "best.ckpt"
    assert main(["validate", "--ckpt_path", str(path)]) == 0
    assert str(copied) in last_line(capsys.readouterr().out)
    with open(copied / "logs" / "validate" / "metrics.csv", newline="") as file:
        [row] = csv.DictReader(file)
    with open(copied / "logs" / "fit" / "metrics.csv", newline="") as file:
        [trained] = [row for row in csv.DictReader(file) if row["val/dice"]]
    assert float(row["val/dice"]) == pytest.approx(float(trained["val/dice"]), abs=1e-6)


def test_the_same_seed_gives_the_same_weights(run, phantom, tmp_path):
    weights = []
    for name in ("a", "b"):
        fit(phantom, tmp_path / name)
        weights.append(torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    "overlays",
    [
        [CONF / "patches.yaml"],
        [CONFIGS / "network" / "rare_unet_paper.yaml"],
        [CONFIGS / "network" / "unet.yaml", CONFIGS / "trainer" / "cpu.yaml"],
        [CONFIGS / "network" / "unet_multi_resolution.yaml"],
        [CONFIGS / "network" / "nnunet.yaml"],
        [CONFIGS / "hippocampus_long.yaml"],
        [CONFIGS / "ct.yaml"],
    ],
    ids=["patches", "paper", "unet", "unet_multi_resolution", "nnunet", "long", "ct"],
)
def test_overlays_train_and_test(phantom, tmp_path, overlays):
    words = [word for path in overlays for word in ("--config", str(path))]
    words += ["--model.network.init_args.features", "2", "--trainer.max_epochs", "1"]
    assert fit(phantom, tmp_path / "run", *words) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "best.ckpt")]) == 0
    assert len(read_cases(tmp_path / "run")) == 16
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"].get("window_size") == config["data"]["patch_size"]


def test_a_test_of_nothing_asks_for_the_checkpoint(phantom, capsys):
    assert main(["test", "--data.root", str(phantom)]) == 2
    assert_one_line("test.model.network. Give --ckpt_path, a checkpoint of rare fit", capsys.readouterr().err)


def test_settings_may_be_given_as_text(phantom, tmp_path):
    text = "trainer: {max_epochs: 1}  #" + 300 * " "  # no file could be called that
    assert fit(phantom, tmp_path / "run", "--config", text, "--trainer.fast_dev_run", "1") == 0


def test_a_network_of_ones_own_trains_as_the_readme_says(phantom, tmp_path, monkeypatch):
    readme = (CONFIGS.parent / "README.md").read_text()
    code = next(block for block in readme.split("```python\n") if "my_networks.py" in block).partition("```")[0]
    (tmp_path / "my_networks.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["--model.network", "my_networks.MyNetwork", "--model.network.init_args.width", "4"]
    assert fit(phantom, tmp_path / "run", *words) == 0
    assert main(["test", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "last.ckpt")]) == 0


def test_a_network_of_other_levels_than_the_data_is_refused(phantom, tmp_path, monkeypatch, capsys):
    code = (
        "from rare_lightning.networks import FixedResolutionNetwork\n\n\n"
        "class Halving(FixedResolutionNetwork):\n"
        "    def __init__(self, in_channels: int, out_channels: int, depth: int, levels: int):\n"
        "        super().__init__(levels, depth, strides=2)\n"
        "        self.coarsest_stride = (1, 1, 1)\n\n"
        "    def segment(self, image):\n"
        "        raise NotImplementedError\n"
    )
    (tmp_path / "halving.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    strides = ["--data.levels", "1", "--data.depth", "2", "--data.strides", "[[2,2,1],[2,2,2]]"]
    assert fit(phantom, tmp_path / "run", "--model.network", "halving.Halving", *strides) == 1
    assert_one_line(
        "Halving has levels of [(1, 1, 1), (2, 2, 2)] base voxels, and the data of [(1, 1, 1), (2, 2, 1)]",
        capsys.readouterr().err,
    )


def test_the_readmes_own_loop_trains(phantom, monkeypatch, tmp_path):
    readme = (CONFIGS.parent / "README.md").read_text()
    blocks = [block.partition("```")[0] for block in readme.split("```python\n")]
    code = "\n".join(block for block in blocks if "network = RAREUNet(" in block or "data.train_dataloader()" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Task04_Hippocampus").symlink_to(phantom)
    names = {}
    exec(code, names)
    assert names["loss"].isfinite()
    with pytest.raises(ValueError, match=r"level 1 is answered on .*batch\[\"label\"\]\.on"):
        names["objective"](names["prediction"], names["batch"]["label"])


@pytest.fixture
def one_class(phantom, tmp_path):
    """The phantom with both its structures as one."""
    root = shutil.copytree(phantom, tmp_path / "one_class")
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**content, "labels": {"0": "background", "1": "organ"}}))
    for path in (root / "labelsTr").glob("*.nii.gz"):
        label = nib.load(path)
        nib.save(nib.Nifti1Image((label.get_fdata() > 0).astype(np.uint8), label.affine), path)
    return root


def test_a_task_of_one_class_trains_tests_and_predicts(one_class, tmp_path, capsys):
    assert fit(one_class, tmp_path / "run") == 0
    best = str(tmp_path / "run" / "checkpoints" / "best.ckpt")
    assert main(["test", "--ckpt_path", best]) == 0
    assert {row["class"] for row in read_cases(tmp_path / "run")} == {"organ"}
    scans = str(one_class / "imagesTs")
    assert main(["predict", "--input", scans, "--ckpt_path", best, "--output", str(tmp_path / "predicted")]) == 0
    (predicted,) = (tmp_path / "predicted").glob("*.nii.gz")
    assert set(np.unique(nib.load(predicted).get_fdata())) <= {0, 1}
    assert "organ" in capsys.readouterr().out


NNUNET = ["--config", str(CONFIGS / "network" / "nnunet.yaml"), "--model.network.init_args.features", "2"]


def test_nnunet_is_planned_from_what_it_is_trained_with(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path / "task")
    known, tested = [f"hippocampus_{i:03d}" for i in (1, 2)], [f"hippocampus_{i:03d}" for i in (3, 4, 5, 6)]
    for path in (root / folder / f"{name}.nii.gz" for folder in ("imagesTr", "labelsTr") for name in tested):
        scan = nib.load(path)
        nib.save(nib.Nifti1Image(scan.get_fdata(), scan.affine * [[2], [2], [2], [1]]), path)
    (tmp_path / "splits.json").write_text(json.dumps([{"train": known[:1], "val": known[1:]}]))
    words = [*NNUNET, "--data.splits_file", str(tmp_path / "splits.json"), "--trainer.limit_train_batches", "1"]
    assert fit(root, tmp_path / "run", *words, "--data.batch_size", "1") == 0
    planned = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["network"]["init_args"]
    assert planned["spacing"] == pytest.approx([1, 1, 1])
    labels = [nib.as_closest_canonical(nib.load(root / "labelsTr" / f"{name}.nii.gz")) for name in known]
    assert planned["patch_size"] == np.round(np.median([label.shape for label in labels], axis=0)).tolist()


def test_nnunet_goes_on_as_it_was_planned(phantom, tmp_path):
    assert fit(phantom, tmp_path / "run", *NNUNET) == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    words = ["--ckpt_path", str(last), "--data.patch_size", "[8, 8, 8]", "--trainer.max_epochs", "2"]
    assert fit(phantom, tmp_path / "next", *NNUNET, *words) == 0


@pytest.mark.parametrize(("setting", "value"), [("depth", "0"), ("spacing", "[1, 1, 0]"), ("patch_size", "[9, 9, 9]")])
def test_settings_that_nothing_can_be_planned_from_are_refused(phantom, tmp_path, setting, value, capsys):
    assert fit(phantom, tmp_path / "run", *NNUNET, f"--data.{setting}", value) == 1
    assert_one_line(setting, capsys.readouterr().err)


def test_missing_architectures_are_answered_with_what_to_install(phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    words = ["--config", str(CONFIGS / "network" / "nnunet.yaml")]
    assert fit(phantom, tmp_path / "run", *words) == 1
    assert "pip install --no-deps dynamic-network-architectures" in last_line(capsys.readouterr().err)


@pytest.mark.parametrize("name", ["demo", "hippocampus", "brats"])
def test_the_configs_run_as_they_stand(phantom, tmp_path, name):
    words = ["--config", str(CONFIGS / f"{name}.yaml"), "--data.root", str(phantom), "--data.folds", "2"]
    words += ["--data.num_workers", "0", "--model.network.init_args.features", "2", "--trainer.fast_dev_run", "1"]
    if name == "brats":
        words += ["--data.patch_size", "[64, 64, 64]", "--data.spacing", "[1, 1, 1]", "--trainer.precision", "32"]
    assert main(["fit", *words, "--trainer.accelerator", "cpu", "--run_dir", str(tmp_path / "run")]) == 0


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_processor_without_bfloat16_is_said_to_be_slow(phantom, tmp_path, monkeypatch, caplog, multiplies):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": multiplies})
    words = ["--trainer.precision", "bf16-mixed", "--model.optimizer", "rare_lightning.optimizers.Muon"]
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        assert fit(phantom, tmp_path / "run", *words, "--trainer.fast_dev_run", "1") == 0
    hint = "Faster steps: --trainer.precision 32-true --model.optimizer torch.optim.AdamW"
    assert (hint in caplog.text) is not multiplies


def test_a_word_that_commands_share_names_them(capsys):
    assert main(["data", "--help"]) == 0
    assert "rare data download, rare data check" in capsys.readouterr().out
    assert main(["data", "chek"]) == 1
    assert_one_line("no command 'data chek'. Commands: rare data download, rare data check", capsys.readouterr().err)


def test_a_window_of_intensities_goes_from_training_to_prediction(phantom, tmp_path, caplog):
    root, run = tmp_path / "ct", tmp_path / "run"
    shutil.copytree(phantom, root)
    task = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps({**task, "modality": {"0": "CT"}}))
    hint = "data.normalize [low, high] keeps Hounsfield units"
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        assert fit(root, run, "--data.normalize", "[1000, 2500]") == 0
        assert hint not in caplog.text
        assert fit(root, tmp_path / "other", "--trainer.fast_dev_run", "1") == 0
        assert hint in caplog.text
    scan = sitk.ReadImage(next((root / "imagesTs").iterdir()))
    clipped = sitk.Clamp(scan, sitk.sitkFloat32, 1000, 2500)
    scans = {"a": scan, "clipped": clipped, "brighter": sitk.ShiftScale(clipped, 200)}
    words = [
        "predict",
        "--ckpt_path",
        str(run / "checkpoints" / "last.ckpt"),
        "--output",
        str(tmp_path / "out"),
        "--input",
    ]
    for name, content in scans.items():
        sitk.WriteImage(content, tmp_path / f"{name}.mha")
    assert main([*words, *(str(tmp_path / f"{name}.mha") for name in scans), "--probabilities"]) == 0
    a, same, other = (
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "out" / f"{name}_probabilities.mha")) for name in scans
    )
    assert np.array_equal(a, same)
    assert not np.allclose(a, other, atol=1e-3)


def test_a_run_goes_on_from_its_checkpoint(phantom, tmp_path):
    run = tmp_path / "run"
    last = run / "checkpoints" / "last.ckpt"
    assert fit(phantom, run) == 0
    before = (run / "config.yaml").read_bytes()
    assert fit(phantom, run, "--ckpt_path", str(last), "--trainer.max_epochs", "2") == 0
    assert {path.name for path in last.parent.iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    state = torch.load(last, weights_only=True)
    assert state["epoch"] == 1
    [record] = [v for k, v in state["callbacks"].items() if k.startswith("TrainingRecord")]
    assert record["epochs"] == 2
    assert (run / "config.yaml").read_bytes() == before
    assert (run / "config-2.yaml").is_file()
    assert (run / "logs" / "fit-2" / "metrics.csv").is_file()


def test_the_last_checkpoint_is_of_the_last_epoch_and_the_best_of_the_best(phantom, tmp_path):
    run = tmp_path / "run"
    nothing_learnt = ("--model.optimizer.init_args.lr", "0", "--model.optimizer.init_args.weight_decay", "0")
    assert fit(phantom, run, *nothing_learnt, "--trainer.max_epochs", "2") == 0
    epochs = [torch.load(run / "checkpoints" / name, weights_only=True)["epoch"] for name in ("best.ckpt", "last.ckpt")]
    assert epochs == [0, 1]


def test_without_a_validation_the_last_checkpoint_is_what_to_test(phantom, tmp_path, capsys):
    assert fit(phantom, tmp_path / "run", "--trainer.check_val_every_n_epoch", "2") == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert last.exists()
    assert last_line(capsys.readouterr().out) == f"Next: rare test --ckpt_path {last}"


def test_a_run_folder_in_use_is_refused(run, phantom, capsys):
    assert fit(phantom, run) == 1
    assert "holds a run" in last_line(capsys.readouterr().err)


def test_a_run_that_was_begun_while_another_started_is_left_alone(run, phantom, tmp_path, monkeypatch, capsys):
    place = RareCLI.before_instantiate_classes

    def late(self):
        place(self)
        shutil.copytree(run, tmp_path / "run")

    monkeypatch.setattr(RareCLI, "before_instantiate_classes", late)
    assert fit(phantom, tmp_path / "run") == 1
    assert_one_line("this run folder holds a run", capsys.readouterr().err)
    shutil.rmtree(tmp_path / "run")
    assert fit(phantom, tmp_path / "run", "--resume") == 1
    assert_one_line("another rare fit has trained here since this one began", capsys.readouterr().err)


def test_a_run_folder_in_which_nothing_was_trained_can_be_used(phantom, tmp_path, capsys):
    assert fit(phantom, tmp_path / "run", "--model.optimizer.init_args.lr", "-1") == 1
    assert fit(phantom, tmp_path / "run", "--trainer.fast_dev_run", "1") == 0


def test_without_a_run_dir_a_new_one_is_made(phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *TINY, "--data.root", str(phantom)]) == 0
    [folder] = (tmp_path / "runs").iterdir()
    assert (folder / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test", "--ckpt_path", "none.ckpt"], "none.ckpt: no such checkpoint"),
        (["test", "--ckpt_path", str(CONF / "tiny.yaml")], "not a checkpoint of rare fit"),
        (["fit", *TINY, "--data.root", "nowhere"], "dataset.json: not found"),
        (["data", "check", "nowhere"], "dataset.json: not found"),
        (["data", "check", "~nobody-of-this-name/task"], "Could not determine home directory"),
        (["phantom", "task", "--seed", "-1"], "seed (-1) >= 0"),
        (["test"], "or --ckpt_path to test or validate, which knows it"),
        (["evaluate", "--predictions", ".", "--labels", "nowhere", "--output", "out"], "nowhere: no such folder"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_1(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    assert_one_line(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run_dir", "file"], "file: Not a directory"),
        pytest.param(
            ["--config", str(CONFIGS / "trainer" / "gpu.yaml"), "--trainer.accelerator", "gpu"], "gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)  # fmt: skip
def test_places_and_devices_that_are_not_there_get_one_line(phantom, tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert main(["fit", *TINY, "--data.root", str(phantom), *words]) == 1
    error = capsys.readouterr().err
    assert "rare: error: " in last_line(error)
    assert_one_line(message, error)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint.dirpath", "elsewhere"], "checkpoint.dirpath (elsewhere): everything of a run goes into"),
        (["--trainer.default_root_dir", "elsewhere"], "trainer.default_root_dir (elsewhere): everything of a run goes"),
        (["--checkpoint.save_top_k", "3"], "checkpoint.save_top_k (3): several checkpoints cannot all be called best"),
        (["--checkpoint.save_top_k", "-1"], "checkpoint.save_top_k (-1): several"),
        (["--seed_everything", "-1"], "seed_everything (-1) must be 0 or more"),
        (["--data.seed", "-1"], "data.seed (-1) must be 0 or more"),
        (
            ["--model.network", "rare_lightning.networks.UNet", "--data.levels", "4", "--data.depth", "3"],
            "level 4 is deeper than the 3 down-samplings",
        ),
        (["--checkpoint.monitor", "val/loss"], "checkpoint.monitor (val/loss) is best where it is lowest: give"),
        (["--trainer.accumulate_grad_batches", "0"], "trainer.accumulate_grad_batches (0) must be 1 or more"),
        (["--model.objective.init_args.level_weights", "[1]"], "level_weights [1.0] must be one for each level"),
        (["--model.objective.init_args.level_weights", "[1, 2, 3]"], "level_weights [1.0, 2.0, 3.0] must be"),
        (["--model.network.init_args.out_channels", "7"], "out_channels follows from the data: give --data.root"),
        (["--model.network.levels=1"], "--model.network.levels follows from the data: give --data.levels"),
        (
            ["--model.level_cycle", "[[1]]", "--model.objective.init_args.level_weights", "[1, 0]"],
            "level_weights [1.0, 0.0] leave nothing to train of a batch of [[1]]",
        ),
        (["--trainer.max_epochs", "0"], "trainer.max_epochs and max_steps must leave something to train"),
        (["--trainer.limit_train_batches", "0"], "trainer.limit_train_batches 0 leaves nothing to train"),
        (
            ["--checkpoint.monitor", "null", "--checkpoint.mode", "min"],
            "checkpoint.mode min is of a checkpoint.monitor",
        ),
        (
            ["--data.augmentation", "[{class_path: torchio.RandomFlip, init_args: {axes: [5]}}]"],
            "rare: error: All axes must be 0, 1 or 2, but found",
        ),
        (["--model.nsd_tolerance_mm", "-1"], "nsd_tolerance_mm (-1.0) must be >= 0"),
        (["--model.network.init_args.features", "0"], "features must be one width or depth + 1 = 3 widths, all >= 1"),
    ],
)
def test_settings_that_cannot_hold_get_one_line(phantom, tmp_path, monkeypatch, words, message, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *TINY, "--data.root", str(phantom), *words]) == 1
    assert_one_line(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.max_epochs", "-1"], "model.scheduler one_cycle needs to know how long the run is"),
        (["--model.optimizer.init_args.lr", "-1"], "model.optimizer: Invalid learning rate: -1.0"),
        (
            ["--model.optimizer", "rare_lightning.optimizers.Muon", "--model.optimizer.init_args.momentum", "2"],
            "model.optimizer: lr (0.01) and weight_decay (0.01) must be >= 0, and momentum (2.0) in [0, 1)",
        ),
        (
            ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor", "val/dicee"],
            "Early stopping conditioned on metric `val/dicee` which is not available",
        ),
    ],
)
def test_settings_that_training_finds_wrong_get_one_line(phantom, tmp_path, words, message, capsys):
    assert fit(phantom, tmp_path / "run", *words) == 1
    assert_one_line(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_answered_with_what_to_do(phantom, run, tmp_path, monkeypatch, error, capsys):
    def raises(*_):
        raise error

    monkeypatch.setattr(SegmentationModule, "forward", raises)
    test = ["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt"), "--run_dir", str(tmp_path / "test")]
    for command in (lambda: fit(phantom, tmp_path / "run"), lambda: main(test)):
        assert command() == 1
        line = last_line(capsys.readouterr().err)
        assert line.startswith(f"rare: error: out of memory ({error}). Give a smaller --data.patch_size")


def test_a_killed_loader_process_is_answered_with_what_to_do(phantom, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(WholeVolumes, "__getitem__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    assert fit(phantom, tmp_path / "run", "--data.num_workers", "1") == 1
    assert_one_line("--data.num_workers", capsys.readouterr().err)


def test_a_loader_process_that_a_job_ends_with_is_none_that_was_killed(phantom, tmp_path, monkeypatch, capsys):
    def terminated(*_):
        for process in (os.getppid(), os.getpid()):
            os.kill(process, signal.SIGTERM)

    monkeypatch.setattr(WholeVolumes, "__getitem__", terminated)
    assert fit(phantom, tmp_path / "run", "--data.num_workers", "1") == 128 + signal.SIGTERM
    assert_one_line("ended by SIGTERM. rare fit", capsys.readouterr().err)


def test_a_mistake_that_a_loader_process_meets_gets_one_line(phantom, tmp_path, capsys):
    words = ["--data.cache_dir", str(tmp_path / "cache"), "--data.num_workers", "1"]
    assert fit(phantom, tmp_path / "run", *words, "--trainer.fast_dev_run", "1") == 0
    for record in (tmp_path / "cache").glob("*/case.json"):
        record.unlink()
    capsys.readouterr()
    assert fit(phantom, tmp_path / "next", *words) == 1
    error = capsys.readouterr().err
    assert_one_line("case.json: not what preprocessing wrote", error)
    assert last_line(error).startswith(f"rare: error: {tmp_path / 'cache'}")


def test_several_of_the_best_are_kept_under_names_of_their_own(phantom, tmp_path):
    several = ["--checkpoint.save_top_k", "2", "--checkpoint.filename", "{epoch}", "--trainer.max_epochs", "2"]
    assert fit(phantom, tmp_path / "run", *several) == 0
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {"epoch=0.ckpt", "epoch=1.ckpt", "last.ckpt", "previous.ckpt"}


def test_a_run_begins_by_the_configuration_of_another(run, tmp_path):
    metrics = Path("logs", "fit", "metrics.csv")
    before = (run / metrics).read_bytes()
    assert main(["fit", "--config", str(run / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    assert (run / metrics).read_bytes() == before
    assert (tmp_path / "again" / metrics).stat().st_size > 0


def test_a_run_that_is_over_keeps_its_metrics_when_it_is_resumed_by_its_own_configuration(copied):
    before = (copied / "logs" / "fit" / "metrics.csv").read_bytes()
    assert main(["fit", "--config", str(copied / "config.yaml"), "--run_dir", str(copied), "--resume"]) == 0
    assert (copied / "logs" / "fit" / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    "words",
    [
        ["test"],
        ["fit", *TINY],
        ["fit", *TINY, "--data.root", "{phantom}", "--data.batchsize", "3"],
        ["fit", *TINY, "--data.root", "{phantom}", "--model.network.init_args.normalization", "layer"],
        ["fit", *TINY, "--data.root", "{phantom}", "--data.levels", "2"],
        ["phantom"],
        ["data"],
        ["predictt"],
    ],
)
def test_wrong_words_are_refused_without_a_traceback(words, capsys, phantom, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(phantom=phantom) for word in words]
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    error = capsys.readouterr().err
    assert "error" in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_broken_data_is_listed_before_training(phantom, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "task")
    (root / "labelsTr" / "hippocampus_003.nii.gz").unlink()
    (root / "imagesTr" / "hippocampus_001.nii.gz").unlink()
    assert main(["data", "check", str(root)]) == 1
    checked = capsys.readouterr().err
    assert "2 problem(s)" in checked
    assert fit(root, tmp_path / "run") == 1
    assert "2 problem(s)" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_class_that_no_case_has_is_named(phantom, tmp_path, capsys, caplog):
    root = shutil.copytree(phantom, tmp_path / "task")
    facts = json.loads((root / "dataset.json").read_text())
    facts["labels"]["3"] = "Tail"
    (root / "dataset.json").write_text(json.dumps(facts))
    assert main(["data", "check", str(root)]) == 0
    assert "Tail: in no cases" in capsys.readouterr().out
    assert fit(root, tmp_path / "run", "--trainer.fast_dev_run", "1") == 0
    assert "no training case has Tail" in caplog.text


@pytest.mark.parametrize(("role", "number"), [("train", "1"), ("val", "2")])
def test_cases_without_any_class_cannot_train_or_choose_the_best(phantom, tmp_path, capsys, role, number):
    root = shutil.copytree(phantom, tmp_path / "task")
    split = {"train": ["hippocampus_001"], "val": ["hippocampus_002"], "test": ["hippocampus_003"]}
    (tmp_path / "splits.json").write_text(json.dumps([split]))
    path = root / "labelsTr" / f"hippocampus_00{number}.nii.gz"
    label = nib.load(path)
    nib.save(nib.Nifti1Image(np.zeros(label.shape, np.uint8), label.affine), path)
    assert main(["data", "check", str(root)]) == 0
    assert f"without any class: hippocampus_00{number}" in capsys.readouterr().out
    words = ["--data.splits_file", str(tmp_path / "splits.json"), "--data.batch_size", "1"]
    assert fit(root, tmp_path / "run", *words) == 1
    name = {"train": "training", "val": "validation"}[role]
    assert_one_line(f"no {name} case (hippocampus_00{number}) has any class", capsys.readouterr().err)


def test_an_image_that_is_there_twice_is_named(phantom, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "task")
    for folder in ("imagesTr", "labelsTr"):
        shutil.copy(root / folder / "hippocampus_001.nii.gz", root / folder / "hippocampus_004.nii.gz")
    assert main(["data", "check", str(root)]) == 0
    assert "the same image: hippocampus_001, hippocampus_004" in capsys.readouterr().out


def test_a_patch_beyond_all_scans_is_said(phantom, tmp_path, caplog):
    assert fit(phantom, tmp_path / "run", "--data.patch_size", "[96,32,96]", "--trainer.fast_dev_run", "1") == 0
    assert re.search(r"patch_size \[96, 32, 96\] reaches beyond .* of at most \[\d\d, \d\d, \d\d\]", caplog.text)


def test_tools_and_help_read_well(capsys, tmp_path):
    root = tmp_path / "task"
    assert main(["phantom", str(root), "--cases", "2", "--size", "[24, 24, 24]"]) == 0
    assert main(["data", "check", str(root)]) == 0
    assert "2 cases, no problems\n  Anterior: in 2 cases\n  Posterior: in 2 cases" in capsys.readouterr().out
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert f"\n  {name} " in overview
        with pytest.raises(SystemExit) as stop:
            main([*name.split(), "--help"])
        assert stop.value.code == 0
        printed = capsys.readouterr().out
        assert f"{name} " in printed.splitlines()[0] + " "
        assert COMMANDS[name].split(":")[0] in printed


def test_help_and_version_do_not_wait_for_libraries():
    script = "import sys; from rare_lightning.cli import main; main(sys.argv[1:]); sys.exit('torch' in sys.modules)"
    for words, answer in ((["--help"], "predict"), (["--version"], __version__)):
        ran = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        assert answer in ran.stdout


@pytest.mark.parametrize("text", ["a: b: c", "- a", "\x00"])
def test_a_file_that_is_no_configuration_is_named(tmp_path, text, capsys):
    (tmp_path / "broken.yaml").write_text(text)
    assert main(["fit", *TINY, "--config", str(tmp_path / "broken.yaml")]) == 1
    assert_one_line("broken.yaml: is no configuration", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fit", "--trainer.max_epochs", "1"], "give --data.root, the folder of a Decathlon task"),
        (["fit", "--data.root", "x", "--trainer.max_ep", "1"], "unrecognized arguments: --trainer.max_ep"),
        (["fit", *TINY, "--data.patch_size", "64"], "data.patch_size is 64, and must be one of: list[int], null"),
        (
            ["fit", *TINY, "--data.normalize", "minmax"],
            "data.normalize is minmax, and must be one of: Literal['zscore', 'percentile'], tuple[float, float]",
        ),
        (["fit", *TINY, "--model.network", "RAREUnet"], "there is no class RAREUnet. Give its import path"),
        (["fit", *TINY, "--data.batch_size", "many"], "data.batch_size is many, and must be one of: int"),
        (
            ["fit", *TINY, "--model.network.init_args.features", "x"],
            "model.network.features is x, and must be one of: int, Sequence[int]",
        ),
        (
            ["fit", *TINY, "--model.objective.init_args.level_weights", "x"],
            "model.objective.level_weights is x, and must be one of: Sequence[float], null",
        ),
        (["fit", *TINY, "--model.optimizer.init_args.lr", "x"], "model.optimizer.lr is x, and must be one of: float"),
        (
            ["fit", *TINY, "--data.augmentation", "[{class_path: torchio.RandomFlip, init_args: {axs: [0]}}]"],
            "data.augmentation: torchio.RandomFlip: Option 'axs' is not accepted",
        ),
        (["predict", "--ckpt_path", "a", "--input", "b", "--output", "c", "--prev"], "unrecognized arguments: --prev"),
    ],
)
def test_what_is_left_out_or_no_value_is_named(words, message, capsys):
    assert main(words) in (1, 2)
    assert message in last_line(capsys.readouterr().err)


def test_patches_that_are_too_small_are_answered_with_a_line(phantom, tmp_path, capsys):
    deep = ["--data.depth", "4", "--data.patch_size", "[8,8,8]", "--trainer.num_sanity_val_steps"]
    for sanity_steps in ("0", "2"):  # training, and validation in windows of that size
        assert fit(phantom, tmp_path / sanity_steps, *deep, sanity_steps) == 1
        line = last_line(capsys.readouterr().err)
        assert "too small" in line and "Set a larger data.patch_size" in line
        assert "hippocampus_0" in line


def test_the_package_imports_what_is_asked_for():
    script = "import rare_lightning as r; r.RAREUNet(1, 2); print(r.networks.UNet is r.UNet, r.__dir__())"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("True")
    assert "Segmenter" in ran.stdout
    with pytest.raises(AttributeError, match="has no attribute 'RareUNet'"):
        rare_lightning.RareUNet  # noqa: B018  # the access itself is tested
    assert all(getattr(rare_lightning, name) for name in rare_lightning.__all__)


class Signals(L.Callback):
    """As a batch system does whose time is up, or a user at the keyboard."""

    def __init__(self, number: int):
        self.number = number

    def on_train_batch_end(self, *args):
        os.kill(os.getpid(), self.number)


@pytest.mark.usefixtures("ctrl_c_kept")
@pytest.mark.parametrize("cause", [signal.SIGTERM, signal.SIGINT])
def test_a_training_that_is_ended_by_a_signal_says_so(phantom, tmp_path, cause, capsys):
    words = ["--trainer.callbacks+=tests.test_cli.Signals", "--trainer.callbacks.number", str(int(cause))]
    assert fit(phantom, tmp_path / "run", *words, "--trainer.max_epochs", "3") == 128 + cause
    assert_one_line(f"ended by {cause.name}. rare fit goes on from its last checkpoint", capsys.readouterr().err)
