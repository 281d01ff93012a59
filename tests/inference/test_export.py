import json
import pickle
import shutil
import sys

import pytest
import SimpleITK as sitk
import torch

import rare_lightning
from rare_lightning import RAREUNet
from rare_lightning.cli import main
from rare_lightning.data.geometry import Geometry
from rare_lightning.data.scans import Scan, find_scans
from rare_lightning.errors import UserError
from rare_lightning.inference.export import (
    OPEN,
    SUFFIXES,
    TOLERANCE,
    LevelNetwork,
    digest,
    export_network,
    sidecar_of,
    write,
)
from rare_lightning.inference.prediction import ScanDataset
from rare_lightning.networks import UNet

FORMATS = list(SUFFIXES)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    for kind in FORMATS:
        assert main(["export", "--ckpt_path", str(checkpoint), "--format", kind, "--output", str(folder / kind)]) == 0
    return folder


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("level", [0, 1, 2])
def test_exported_networks_answer_as_the_checkpoint_does(exported, segmenter, scan, kind, level):
    other = rare_lightning.load(exported / kind)
    scan.SetSpacing((1.1 * 2**level,) * 3)
    prepared = segmenter.prepare(as_scan(scan), "scan")
    assert prepared.route.level == level
    mine, theirs = (model.probabilities(model.prepare(as_scan(scan), "scan")) for model in (segmenter, other))
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=0)
    assert (sitk.GetArrayFromImage(segmenter(scan)) == sitk.GetArrayFromImage(other(scan))).mean() > 0.999


def as_scan(image):
    return Scan(sitk.GetArrayFromImage(image).transpose(2, 1, 0)[None], Geometry.of(image))


@pytest.mark.parametrize("kind", FORMATS)
def test_scans_for_an_exported_network_are_prepared_in_processes_that_are_not_forked(exported, phantom, kind):
    segmenter = rare_lightning.load(exported / kind)
    dataset = ScanDataset(find_scans([str(phantom / "imagesTr" / "hippocampus_001.nii.gz")]), segmenter)
    assert pickle.loads(pickle.dumps(dataset))[0].prepared is not None
    assert segmenter.networks


@pytest.mark.slow  # the same path as above, for rarer networks
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    "network",
    [
        RAREUNet(2, 3, features=2, depth=2, levels=1, head="plain", strides=[[2, 2, 1], [2, 2, 2]]),
        RAREUNet(1, 3, features=2, depth=3, levels=1, normalization="batch", activation="gelu", residual=True),
        UNet(1, 3, features=2, depth=2, levels=1, normalization="group"),
    ],
    ids=["plain", "batch", "unet"],
)
def test_every_kind_of_network_keeps_its_free_sizes(kind, network, tmp_path):
    network.eval()
    channels = next(network.parameters()).shape[1]
    for level in network.levels:
        module, file = LevelNetwork(network, level).eval(), tmp_path / f"{level}{SUFFIXES[kind]}"
        write(kind, module, torch.randn(1, channels, 9, 11, 10), file)
        run = OPEN[kind](file)
        for size in ((9, 11, 10), (16, 8, 12), (5, 23, 7)):
            image = torch.randn(1, channels, *size)
            with torch.inference_mode():
                torch.testing.assert_close(run(image), module(image), atol=1e-4, rtol=1e-4)


def test_deep_networks_are_compared_on_images_that_are_large_enough(tmp_path):
    network = RAREUNet(1, 2, features=2, depth=6, levels=1).eval()
    found = export_network(network, {"channels": ["T1"]}, {1: 1.0}, tmp_path, "torchscript", [1])
    assert found[1] < TOLERANCE


def test_an_exported_network_has_the_precision_that_it_has(exported):
    with pytest.raises(UserError, match="was exported in full precision; bf16-mixed is for checkpoints of rare fit"):
        rare_lightning.load(exported / "onnx", precision="bf16-mixed")


def test_the_sidecar_says_what_preprocessing_needs(exported, segmenter):
    content = json.loads((exported / "onnx" / "model.json").read_text())
    assert content["model"]["preprocessing"] == segmenter.preprocessing.as_dict()
    assert content["model"]["classes"] == segmenter.classes
    assert sorted(content["levels"]) == ["0", "1", "2"]
    for entry in content["levels"].values():
        assert (exported / "onnx" / entry["file"]).exists()
        assert 0 <= entry["largest_difference"] < 1e-3


def test_an_exported_model_may_lie_at_home(exported, monkeypatch):
    monkeypatch.setenv("HOME", str(exported))
    assert sidecar_of("~/onnx") == exported / "onnx" / "model.json"
    assert sidecar_of("~/onnx/level_1.onnx") == exported / "onnx" / "model.json"


@pytest.mark.parametrize("kind", FORMATS)
def test_the_digest_of_an_exported_model_follows_every_file(exported, tmp_path, kind):
    shutil.copytree(exported / kind, tmp_path / "copy")
    whole = digest(exported / kind)
    assert digest(tmp_path / "copy") == digest(tmp_path / "copy" / "model.json") == whole
    for file in (tmp_path / "copy").iterdir():
        content = file.read_bytes()
        file.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        assert digest(tmp_path / "copy") != whole
        file.write_bytes(content)


def test_exported_models_know_the_axes_that_training_flipped(checkpoint, scan, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["datamodule_hyper_parameters"]["augmentation"] = [{"class_path": "torchio.RandomFlip"}]
    torch.save(content, tmp_path / "flips.ckpt")
    words = ["--ckpt_path", str(tmp_path / "flips.ckpt"), "--format", "torchscript", "--level", "0"]
    assert main(["export", *words, "--output", str(tmp_path / "exported")]) == 0
    models = [rare_lightning.load(tmp_path / name, mirror=True) for name in ("flips.ckpt", "exported")]
    answers = [model.probabilities(model.prepare(as_scan(scan), "scan", level=0)) for model in models]
    torch.testing.assert_close(*answers, atol=1e-4, rtol=0)

    sidecar = tmp_path / "exported" / "model.json"
    older = json.loads(sidecar.read_text())
    del older["model"]["mirror_axes"]
    sidecar.write_text(json.dumps(older))
    with pytest.raises(UserError, match="exported: tells of no axis"):
        rare_lightning.load(tmp_path / "exported", mirror=True)
    assert rare_lightning.load([tmp_path / "exported", tmp_path / "flips.ckpt"]).networks


def test_predicting_with_an_exported_model(exported, checkpoint, scan, tmp_path):
    sitk.WriteImage(scan, str(tmp_path / "scan.nii.gz"))
    answers = []
    for model in (
        checkpoint,
        exported / "onnx",
        exported / "openvino" / "level_0.xml",
        exported / "onnx" / "model.json",
    ):
        output = tmp_path / str(len(answers))
        words = ["--input", str(tmp_path / "scan.nii.gz"), "--output", str(output), "--num_workers", "0"]
        assert main(["predict", "--ckpt_path", str(model), *words, "--accelerator", "cpu"]) == 0
        answers.append(sitk.GetArrayFromImage(sitk.ReadImage(str(output / "scan.nii.gz"))))
    for answer in answers[1:]:
        assert (answer == answers[0]).mean() > 0.999


def test_models_of_different_levels_are_averaged_at_those_they_share(checkpoint, scan, tmp_path):
    for level in (0, 1):
        words = ["--ckpt_path", str(checkpoint), "--format", "torchscript", "--output", str(tmp_path / str(level))]
        assert main(["export", *words, "--level", str(level)]) == 0
    scan.SetSpacing((2.0, 2.0, 2.0))
    for models in ([checkpoint, tmp_path / "0"], [tmp_path / "0", checkpoint]):
        both = rare_lightning.load(models)
        assert both.prepare(as_scan(scan), "scan").route.level == 0
        assert sitk.GetArrayFromImage(both(scan)).shape == sitk.GetArrayFromImage(scan).shape
    with pytest.raises(UserError, match="they have no entry level in common"):
        rare_lightning.load([tmp_path / "0", tmp_path / "1"])


@pytest.mark.parametrize(("kind", "code"), [("onnx", 0), ("openvino", 1)])
def test_a_scan_of_one_slice_is_answered_or_refused_with_a_line(exported, scan, tmp_path, kind, code, capsys):
    sitk.WriteImage(scan[:, :, 4:5], str(tmp_path / "slice.nii.gz"))
    words = ["--input", str(tmp_path / "slice.nii.gz"), "--output", str(tmp_path / "out"), "--num_workers", "0"]
    assert main(["predict", "--ckpt_path", str(exported / kind), *words, "--accelerator", "cpu"]) == code
    assert (tmp_path / "out" / "slice.nii.gz").exists() == (code == 0)
    assert ("OpenVINO cannot run it" in capsys.readouterr().err) == (code == 1)


def test_scans_enter_at_one_of_the_levels_that_were_exported(checkpoint, scan, tmp_path, capsys):
    scan = scan[:21, :17, :13]  # no whole voxels of the levels that were not
    words = ["export", "--ckpt_path", str(checkpoint), "--format", "torchscript", "--level", "1"]
    assert main([*words, "--output", str(tmp_path / "one")]) == 0
    assert "level 1: probabilities differ from PyTorch's by at most" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["level_1.pt", "model.json"]
    prepared = rare_lightning.load(tmp_path / "one").prepare(as_scan(scan), "scan")
    assert prepared.route.level == 1
    assert "finer than level 1" in prepared.route.note
    whole = rare_lightning.load(checkpoint)
    expected = whole.probabilities(whole.prepare(as_scan(scan), "scan", level=1))
    torch.testing.assert_close(rare_lightning.load(tmp_path / "one").probabilities(prepared), expected)


def test_a_missing_engine_is_answered_with_its_installation(checkpoint, exported, tmp_path, capsys, monkeypatch):
    for name in ("onnxruntime", "onnxscript", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["export", "--ckpt_path", str(checkpoint), "--format", "onnx", "--output", str(tmp_path / "new")]) == 1
    assert 'onnxscript is not installed: pip install "rare-lightning[onnx]"' in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(UserError, match=r'openvino is not installed: pip install "rare-lightning\[openvino\]"'):
        rare_lightning.load(exported / "openvino")


def test_wrong_words_and_broken_exports_are_refused(checkpoint, exported, tmp_path, capsys):
    words = ["export", "--ckpt_path", str(checkpoint), "--format", "torchscript", "--output"]
    for more, message in (
        ([str(exported / "onnx")], "is not empty; choose a new folder"),
        ([str(tmp_path / "new"), "--level", "7"], "--level 7: the model has levels 0, 1, 2"),
        ([str(tmp_path / "new"), "--ckpt_path", str(exported / "onnx")], "is exported already"),
    ):
        assert main([*words, *more]) == 1
        assert message in capsys.readouterr().err
    broken = tmp_path / "broken"
    shutil.copytree(exported / "onnx", broken)
    (broken / "level_1.onnx").write_bytes(b"other")
    with pytest.raises(UserError, match=r"level_1\.onnx: cannot be opened"):
        rare_lightning.load(broken)
    (broken / "level_1.onnx").unlink()
    with pytest.raises(UserError, match=r"level_1\.onnx: no such file"):
        rare_lightning.load(broken)
    (broken / "model.json").write_text("{}")
    with pytest.raises(UserError, match=r"model\.json: not written by rare export"):
        rare_lightning.load(broken)
    (broken / "model.json").unlink()
    with pytest.raises(UserError, match=r"model\.json: no such file"):
        rare_lightning.load(broken)


def test_a_network_that_would_answer_otherwise_is_not_exported(checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(OPEN, "torchscript", lambda path: lambda image: torch.jit.load(path)(image) * 1.5)
    words = ["export", "--ckpt_path", str(checkpoint), "--format", "torchscript", "--output", str(tmp_path / "new")]
    assert main(words) == 1
    assert "level 0 as torchscript gives other probabilities" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_checkpoints_may_be_called_anything(tmp_path):
    assert sidecar_of(tmp_path / "weights.pt") is None
    assert sidecar_of(tmp_path / "best.ckpt") is None
    assert sidecar_of(tmp_path) == tmp_path / "model.json"
    assert sidecar_of(tmp_path / "model.json") == tmp_path / "model.json"
