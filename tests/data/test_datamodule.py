import json
import shutil
from itertools import chain

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torchio as tio

from rare_lightning.data import DecathlonDataModule
from rare_lightning.data.cache import find_cached
from rare_lightning.data.random_spacing import RandomSpacing
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError
from rare_lightning.networks.grids import block_average


def make(root, **settings):
    return DecathlonDataModule(**{"root": str(root), "folds": 2, "num_workers": 0, **settings})


@pytest.fixture
def broken(phantom, tmp_path):
    """A copy with one image missing and one label truncated."""
    root = shutil.copytree(phantom, tmp_path / "task")
    (root / "imagesTr" / "hippocampus_002.nii.gz").unlink()
    label = root / "labelsTr" / "hippocampus_005.nii.gz"
    label.write_bytes(label.read_bytes()[:80])
    return root


def test_loaders_give_pyramids_of_their_role(phantom):
    data = make(phantom, patch_size=[16, 32, 16], patches_per_case=3)
    data.prepare_data()
    for role, loader in (
        ("train", data.train_dataloader()),
        ("val", data.val_dataloader()),
        ("test", data.test_dataloader()),
    ):
        batches = list(loader)
        assert set(chain.from_iterable(batch["case"] for batch in batches)) == set(getattr(data.split, role))
    batch = next(iter(data.train_dataloader()))
    assert [tuple(image.shape) for image in batch["image"].values()] == [
        (2, 1, 16, 32, 16), (2, 1, 8, 16, 8), (2, 1, 4, 8, 4), (2, 1, 2, 4, 2),
    ]  # fmt: skip
    assert batch["label"][3].shape == (2, 2, 4, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"data.batch_size \(0\) must be 1 or more"),
        ({"patches_per_case": 0}, r"data.patches_per_case \(0\) must be 1 or more"),
        ({"num_workers": -1}, r"data.num_workers \(-1\) must be 0 or more"),
    ],
)
def test_numbers_that_no_loader_takes_are_refused(phantom, settings, message):
    with pytest.raises(UserError, match=message):
        make(phantom, **settings)


def test_without_a_patch_size_training_cases_are_whole(phantom):
    data = make(phantom)
    data.prepare_data()
    shapes = {
        c.case_id: find_cached(c, data.preprocessing, data.strides, data.cache_dir).shape for c in data.task.cases
    }
    for batch in data.train_dataloader():
        largest = np.max([shapes[case] for case in batch["case"]], axis=0)
        extent = batch["image"][0].shape[2:]
        assert all(e % 8 == 0 and 0 <= e - n < 8 for e, n in zip(extent, largest, strict=True))


def test_all_folds_have_one_base_spacing(phantom, tmp_path):
    root = tmp_path / "task"
    shutil.copytree(phantom, root)
    for i, case in enumerate(read_task(root).cases):
        for path in (case.images[0], case.label):
            image = sitk.ReadImage(path)
            image.SetSpacing((1 + i / 10, 1, 1))
            sitk.WriteImage(image, path)
    spacings = {make(root, fold=fold, folds=3).preprocessing.spacing for fold in range(3)}
    assert len(spacings) == 1


def test_base_spacing_is_that_of_the_cases_or_the_given_one(phantom):
    assert make(phantom).preprocessing.spacing == pytest.approx((1, 1, 1))
    data = make(phantom, spacing=[2.0, 2.0, 1.5])
    data.prepare_data()
    assert next(iter(data.test_dataloader()))["spacing"][0] == pytest.approx((2, 2, 1.5))


def test_patches_follow_from_seed_and_epoch_alone(phantom, monkeypatch):
    def images(epoch, num_workers=0):
        data = make(
            phantom, num_workers=num_workers, patch_size=[16, 16, 16], batch_size=1, test_fraction=0, folds=6,
            random_spacing=RandomSpacing(0.5, 0.5), augmentation=[tio.RandomNoise()],
        )  # fmt: skip
        data.prepare_data()
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        torch.rand(epoch)  # what is drawn elsewhere changes nothing
        return torch.stack([batch["image"][1] for batch in loader])

    first = images(0)
    assert torch.equal(first, images(0))
    torch.testing.assert_close(first, images(0, num_workers=2))  # to rounding: a loader process has one thread
    assert not any(torch.equal(a, b) for a in first for b in images(1))
    monkeypatch.setenv("PL_GLOBAL_SEED", "1")
    assert not any(torch.equal(a, b) for a in first for b in images(0))


def test_per_axis_strides_shape_the_pyramid(phantom):
    data = make(phantom, levels=2, depth=3, strides=[[2, 2, 1], [2, 2, 2], [2, 2, 2]])
    data.prepare_data()
    images = next(iter(data.val_dataloader()))["image"]
    d, h, w = images[0].shape[2:]
    assert images[1].shape[2:] == (d // 2, h // 2, w)
    assert images[2].shape[2:] == (d // 4, h // 4, w // 2)


def test_all_problems_are_listed_before_anything_is_written(broken, cache_dir, tmp_path):
    data = make(broken, cache_dir=str(tmp_path / "cache"))
    missing = r"2 problem\(s\).*\n.*hippocampus_002: .*: file not found\n.*hippocampus_005: .*cannot be read"
    with pytest.raises(UserError, match=missing):
        data.prepare_data()
    shutil.copy(broken / "imagesTr" / "hippocampus_001.nii.gz", broken / "imagesTr" / "hippocampus_002.nii.gz")
    with pytest.raises(UserError, match=r"hippocampus_002: .*differs(.|\n)*hippocampus_005: .*cannot be read"):
        data.prepare_data()
    assert not (tmp_path / "cache").exists()


def test_a_broken_header_does_not_hide_other_problems(phantom, tmp_path):
    root = shutil.copytree(phantom, tmp_path / "task")
    for name in (
        "imagesTr/hippocampus_001.nii.gz",
        "imagesTr/hippocampus_002.nii.gz",
        "imagesTr/hippocampus_003.nii.gz",
    ):
        (root / name).write_bytes(b"no")
    with pytest.raises(UserError, match=r"3 problem\(s\)"):
        make(root).prepare_data()


def test_cached_cases_are_checked_again_for_a_task_of_other_classes(phantom, tmp_path):
    make(phantom).prepare_data()
    root = shutil.copytree(phantom, tmp_path / "task")
    description = json.loads((root / "dataset.json").read_text())
    del description["labels"]["2"]
    (root / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"6 problem\(s\)(.|\n)*label values \[2\] are not in"):
        make(root).prepare_data()


def test_an_emptied_cache_is_filled_again(phantom, tmp_path):
    data = make(phantom, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    shutil.rmtree(tmp_path / "cache")
    assert len(data.val_dataloader()) == len(data.split.val)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size": [16, 16]}, "three multiples of"),
        ({"patch_size": [16, 16, 20]}, r"three multiples of \[8, 8, 8\]"),
        ({"spacing": [1.0, 1.0]}, "three positive numbers"),
        ({"spacing": [1.0, 1.0, 0.0]}, "three positive numbers"),
        ({"spacing": [1.0, 1.0, float("nan")]}, "three positive numbers"),
        ({"levels": -1}, r"data.levels \(-1\) must be 0 or more"),
        ({"foreground_fraction": 0.5}, "without a data.patch_size volumes are taken whole"),
        ({"foreground_fraction": 2.0}, r"data.foreground_fraction \(2.0\) must be a share"),
        ({"batch_size": 9}, "an epoch of 2 patches is less than a step of 1 x 9: lower data.batch_size"),
        ({"root": "/nowhere"}, "dataset.json: not found"),
    ],
)
def test_impossible_settings_are_refused(phantom, settings, message):
    with pytest.raises(UserError, match=message):
        data = make(phantom, **settings) if "root" not in settings else make(settings["root"])
        data.prepare_data()
        data.train_dataloader()


def test_a_split_without_test_cases_cannot_be_tested(phantom):
    data = make(phantom, test_fraction=0)
    data.prepare_data()
    with pytest.raises(UserError, match="none of these cases are for the test"):
        data.test_dataloader()


def test_a_checkpoint_brings_its_split_and_preprocessing(phantom):
    trained = make(phantom, seed=1, spacing=[1.5, 1.5, 1.5], normalize="percentile")
    other = make(phantom, seed=2)
    assert other.split != trained.split
    other.load_state_dict(trained.state_dict())
    assert other.split == trained.split
    assert other.preprocessing == trained.preprocessing


def test_a_checkpoint_is_never_tested_on_cases_it_was_trained_on(phantom):
    state = make(phantom).state_dict()
    lost = state["split"]["train"].pop()  # now unknown
    state["split"]["train"] += ["somebody_else", *state["split"]["test"]]
    state["split"]["test"] = ["another"]
    data = make(phantom, seed=3)
    data.load_state_dict(state)
    assert data.split.test == (lost,)
    assert set(data.split.train) == set(state["split"]["train"]) - {"somebody_else"}
    assert data.split.val == tuple(state["split"]["val"])


def test_a_checkpoint_of_other_classes_is_refused(phantom):
    state = {**make(phantom).state_dict(), "classes": ["background", "liver"]}
    with pytest.raises(UserError, match="liver"):
        make(phantom).load_state_dict(state)


@pytest.mark.parametrize(
    ("channels", "refused"), [(["FLAIR", "T1w"], False), (["T1w", "FLAIR"], True), (["MRI", "PET"], False)]
)
def test_a_checkpoint_of_channels_in_another_order_is_refused(phantom, tmp_path, capsys, channels, refused):
    root = shutil.copytree(phantom, tmp_path / "task")
    content = json.loads((root / "dataset.json").read_text())
    content["modality"] = dict(enumerate(channels))
    (root / "dataset.json").write_text(json.dumps(content))
    data = make(root)
    state = {**make(phantom).state_dict(), "channels": ["FLAIR", "T1w"]}
    if refused:
        with pytest.raises(UserError, match="differ from the checkpoint's \\['FLAIR', 'T1w'\\]"):
            data.load_state_dict(state)
    else:
        data.load_state_dict(state)


def test_all_cases_of_a_new_site_are_test_cases(phantom):
    state = make(phantom).state_dict()
    state["split"] = {role: [f"elsewhere_{case}" for case in ids] for role, ids in state["split"].items()}
    data = make(phantom, folds=100)  # of which its cases are too few
    data.load_state_dict(state)
    assert data.split.test == tuple(case.case_id for case in data.task.cases)
    with pytest.raises(UserError, match="none of these cases are for validation"):
        data.val_dataloader()


def test_augmentation_applies_to_training_alone(phantom):
    blank = tio.Lambda(torch.zeros_like, types_to_apply=[tio.INTENSITY])
    data = make(phantom, augmentation=[blank])
    data.prepare_data()
    assert not next(iter(data.train_dataloader()))["image"][0].any()
    assert next(iter(data.val_dataloader()))["image"][0].any()


def test_random_spacing_applies_to_training_alone(phantom):
    data = make(phantom, random_spacing=RandomSpacing(in_between=1, anisotropic=0))
    data.prepare_data()
    for loader, exact in ((data.train_dataloader(), False), (data.val_dataloader(), True)):
        image = next(iter(loader))["image"]
        # Each level has intensities of its own.
        found, averaged = ((x - x.mean()) / x.std() for x in (image[1][0], block_average(image[0], (2, 2, 2))[0]))
        assert torch.allclose(found, averaged, atol=1e-4) == exact
