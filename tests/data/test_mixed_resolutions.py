"""Scans of several resolutions in one task: each is seen at the level that fits it, and at coarser ones."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

import rare_lightning
from rare_lightning.cli import main
from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.pyramid import downsample_label
from rare_lightning.data.routing import FinestGrids
from rare_lightning.errors import UserError
from rare_lightning.evaluation.label_grids import on_grids_of_labels
from rare_lightning.module import SegmentationModule
from rare_lightning.networks import Prediction, RAREUNet
from rare_lightning.networks.grids import block_average, repeat_blocks

CONFIG = str(Path(__file__).parents[1] / "conf" / "tiny.yaml")


def make(root, **settings):
    defaults = {"levels": 2, "num_workers": 0, "spacing": [1, 1, 1], "splits_file": str(root / "splits.json")}
    return DecathlonDataModule(str(root), **{**defaults, **settings})


def test_a_scan_is_seen_from_the_level_on_that_it_is_predicted_at(mixed):
    data = make(mixed)
    finest = {case.case_id: data.finest_grids(case).level for case in data.task.cases}
    assert {case: level for case, level in finest.items() if level} == {
        "hippocampus_001": 1, "hippocampus_004": 1, "hippocampus_005": 1,
    }  # fmt: skip
    thick = next(case for case in data.task.cases if case.case_id == "hippocampus_005")
    assert data.finest_grids(thick) == FinestGrids(level=1, image_stride=(2, 2, 2), label_stride=(1, 1, 2))
    data.prepare_data()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            [case] = batch["case"]
            assert list(batch["image"]) == list(range(finest[case], 3))
    [batch] = data.train_dataloader()  # a fine scan and a coarse one
    assert list(batch["image"]) == [1, 2]
    together = make(mixed, upsample=True)
    assert not together.lacks_levels
    assert data.lacks_levels
    assert all(list(batch["image"]) == [0, 1, 2] for batch in together.val_dataloader())


def test_a_coarse_scan_is_at_its_own_level_what_prediction_makes_of_it(mixed):
    data = make(mixed)
    data.prepare_data()
    batch = next(batch for batch in data.val_dataloader() if batch["case"] == ["hippocampus_004"])
    scan = tio.ToCanonical()(tio.ScalarImage(mixed / "imagesTr" / "hippocampus_004.nii.gz"))
    assert batch["label"].finest_stride == (2, 2, 2)
    own = data.preprocessing.normalized(scan.data.float())
    torch.testing.assert_close(batch["image"][1][0, :, : own.shape[1], : own.shape[2], : own.shape[3]], own)
    label = tio.ToCanonical()(tio.LabelMap(mixed / "labelsTr" / "hippocampus_004.nii.gz")).data[0]
    assert torch.equal(batch["label"][1][0, : label.shape[0], : label.shape[1], : label.shape[2]], label)


def test_a_label_in_thick_slices_keeps_its_detail_within_them(mixed):
    data = make(mixed)
    data.prepare_data()
    batch = next(batch for batch in data.test_dataloader() if batch["case"] == ["hippocampus_005"])
    label = tio.ToCanonical()(tio.LabelMap(mixed / "labelsTr" / "hippocampus_005.nii.gz")).data[0]
    finest = batch["label"].finest[0, : label.shape[0], : label.shape[1]]
    thick = [finest[..., 2 * i : 2 * i + 2] for i in range(label.shape[2])]  # each slice of 4 mm is two of 2 mm
    agreeing = sum(int((one == label[..., i, None]).sum()) for i, one in enumerate(thick))
    assert agreeing > 0.97 * 2 * label.numel()  # interpolation moves borders between slices alone
    torch.testing.assert_close(batch["label"][1], downsample_label(batch["label"].finest, (2, 2, 1)))


def test_patches_of_coarse_scans_are_cut_between_their_voxels(mixed):
    data = make(mixed, patch_size=[8, 12, 8], patches_per_case=20, foreground_fraction=0.5, batch_size=1)
    data.prepare_data()
    patches = data.train_dataloader().dataset
    coarse = [patches[i] for i in range(len(patches)) if patches[i]["case"] == "hippocampus_001"]
    for patch in coarse:
        blocks = block_average(patch.image.data[None], (2, 2, 2))[0]
        torch.testing.assert_close(repeat_blocks(blocks, (2, 2, 2)), patch.image.data, rtol=1e-4, atol=1e-5)
        label = patch.label.data
        assert torch.equal(repeat_blocks(label[..., ::2, ::2, ::2], (2, 2, 2)), label)
    assert len({tuple(patch.image.data.flatten()[:8].tolist()) for patch in coarse}) > 3


def test_turned_labels_of_coarse_scans_keep_their_volume(mixed):
    turn = tio.RandomAffine(degrees=15, translation=3, scales=0, default_pad_value="minimum")
    plain, turned = (make(mixed, augmentation=augmentation, batch_size=1) for augmentation in (None, [turn]))
    plain.prepare_data()
    volumes = []
    for data in (plain, turned):
        patches = data.train_dataloader().dataset
        cases = [patches[2 * i] for i in range(20)]  # all of hippocampus_001
        assert {case["case"] for case in cases} == {"hippocampus_001"}
        for case in cases:
            label = case.label.data
            assert torch.equal(repeat_blocks(label[..., ::2, ::2, ::2], (2, 2, 2)), label)
            assert case.spacing == (1, 1, 1)
        volumes.append(np.mean([int((case.label.data > 0).sum()) for case in cases]))
    assert volumes[1] == pytest.approx(volumes[0], rel=0.03)


def test_batches_have_scans_of_one_resolution(mixed):
    split = mixed / "all.json"
    names = [f"hippocampus_{i:03d}" for i in range(1, 7)]
    split.write_text(json.dumps([{"train": names[:5], "val": names[5:]}]))
    data = make(mixed, splits_file=str(split), patches_per_case=8, patch_size=[8, 8, 8], batch_size=4)
    data.prepare_data()
    levels = [min(batch["image"]) for batch in data.train_dataloader()]
    assert len(levels) == 10
    assert levels.count(0) >= 16 // 4 - 1  # of two fine scans' sixteen patches


def test_answers_are_compared_with_coarse_labels_on_their_grid(mixed, tmp_path):
    """A network that answers with the label of a coarse scan, and says so evenly within its voxels, is right."""
    data = make(mixed)
    data.prepare_data()
    batch = next(batch for batch in data.val_dataloader() if batch["case"] == ["hippocampus_004"])
    base = batch["label"].on((1, 1, 1))
    certain = torch.nn.functional.one_hot(base.long(), 3).movedim(-1, 1).float() * 40
    network = RAREUNet(1, 3, features=2, depth=4, levels=2)
    module = SegmentationModule(network, ["background", "a", "b"])
    prediction = Prediction({1: certain, 2: certain}, {}, {})
    answers, targets = on_grids_of_labels(module.network, prediction, batch["label"])
    for level in (1, 2):
        assert answers.logits[level].shape[2:] == targets[level].shape[1:] == batch["image"][1].shape[2:]
        assert torch.equal(answers.logits[level].argmax(1), targets[level].long())
    assert module.objective(answers, targets)["loss"] < 1e-3


def test_what_resolutions_train_is_said(mixed, caplog):
    for spacing in (None, [1, 1, 1]):
        data = make(mixed, spacing=spacing)
        data.prepare_data()
        with caplog.at_level("INFO"):
            data.train_dataloader()
    measure = "voxels of training scans measure 1 to 2 x 1 to 2 x 1 to 2 mm; level 0 is"
    assert f"{measure} 1.5x1.5x1.5 mm (the median of each axis; data.spacing chooses another)" in caplog.text
    assert f"{measure} 1x1x1 mm\n" in caplog.text
    assert "1 of 2 training scans train all levels, 1 from level 1 (2x2x2 mm) on" in caplog.text


def test_levels_that_no_scan_is_seen_at_are_not_left_untrained(mixed):
    data = make(mixed, spacing=[0.4, 0.4, 0.4])
    data.prepare_data()
    with pytest.raises(UserError, match=r"no training scan is as fine as level 0 of 0\.4x0\.4x0\.4 mm"):
        data.train_dataloader()


def test_the_spacings_of_a_task_are_counted(mixed, capsys):
    assert main(["data", "check", str(mixed)]) == 0
    assert "spacings: 1x1x1 mm in 3, 2x2x2 mm in 2, 1x1x4 mm in 1" in capsys.readouterr().out


@pytest.mark.parametrize("settings", [["--data.batch_size", "1"], ["--data.patch_size", "[16, 16, 16]"]])
def test_a_task_of_several_resolutions_trains_and_is_tested(mixed, tmp_path, capsys, settings):
    run = tmp_path / "run"
    words = [
        "fit",
        "--config",
        CONFIG,
        "--data.root",
        str(mixed),
        "--data.splits_file",
        str(mixed / "splits.json"),
        *settings,
    ]
    assert main([*words, "--data.spacing", "[1, 1, 1]", "--run_dir", str(run)]) == 0
    with open(run / "logs" / "fit" / "metrics.csv", newline="") as file:
        logged = {name for row in csv.DictReader(file) for name, value in row.items() if value}
    assert {"val/dice/level_0", "val/dice/level_1", "val/level_0/loss", "train/dice/level_1"} <= logged
    capsys.readouterr()
    assert main(["test", "--ckpt_path", str(run / "checkpoints" / "best.ckpt")]) == 0
    with open(run / "test" / "cases.csv", newline="") as file:
        tested = {(row["case"], row["level"], row["spacing_mm"]) for row in csv.DictReader(file)}
    assert tested == {
        ("hippocampus_005", "1", "2x2x2"), ("hippocampus_006", "0", "1x1x1"), ("hippocampus_006", "1", "2x2x2"),
    }  # fmt: skip
    assert "cases" in capsys.readouterr().out
    segmentation = rare_lightning.load(run / "checkpoints" / "best.ckpt")(mixed / "imagesTr" / "hippocampus_005.nii.gz")
    assert segmentation.GetSpacing() == sitk.ReadImage(mixed / "imagesTr" / "hippocampus_005.nii.gz").GetSpacing()
    assert set(np.unique(sitk.GetArrayFromImage(segmentation))) <= {0, 1, 2}
    assert main(["compare", str(run), f"again={run}", "--output", str(tmp_path / "out"), "--timing", "false"]) == 0
