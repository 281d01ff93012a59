"""Files that come from others: what they hold must never be run."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rare_lightning.cli import main
from rare_lightning.data import DecathlonDataModule
from rare_lightning.errors import UserError
from rare_lightning.evaluation.slices import read_slices

TINY = ["--config", str(Path(__file__).parent / "conf" / "tiny.yaml")]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, trap):
        self.trap = str(trap)

    def __reduce__(self):
        return Path.mkdir, (Path(self.trap),)


@pytest.fixture
def trap(tmp_path):
    """What a hostile pickle makes; never there after a test."""
    trap = tmp_path / "executed"
    with pytest.raises(TypeError):  # that it works is half the test
        torch.load(hostile_checkpoint(tmp_path / "proof", trap), weights_only=False)["state_dict"]["x"]
    trap.rmdir()
    yield trap
    assert not trap.exists()


def hostile_checkpoint(path, trap):
    torch.save({"state_dict": Hostile(trap)}, path)
    return path


def hostile_pickle(path, trap):
    path.write_bytes(pickle.dumps(Hostile(trap)))
    return path


def hostile_array(path, trap):
    np.save(path, np.array([Hostile(trap)], dtype=object), allow_pickle=True)
    return path


@pytest.mark.parametrize("write", [hostile_checkpoint, hostile_pickle])
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "export"])
def test_a_pickle_as_checkpoint_is_refused(command, write, phantom, tmp_path, trap, capsys):
    words = {
        "fit": [*TINY, "--data.root", str(phantom), "--run_dir", str(tmp_path / "run"), "--weights_only", "false"],
        "predict": ["--input", str(phantom / "imagesTs"), "--output", str(tmp_path / "out")],
        "export": ["--format", "torchscript", "--output", str(tmp_path / "out")],
    }.get(command, [])
    assert main([command, *words, "--ckpt_path", str(write(tmp_path / "x.ckpt", trap))]) == 1
    assert "x.ckpt: not a checkpoint of rare fit" in capsys.readouterr().err.splitlines()[-1]


def test_training_goes_on_from_no_url(phantom, tmp_path, capsys):
    words = [*TINY, "--data.root", str(phantom), "--run_dir", str(tmp_path / "run")]
    assert main(["fit", *words, "--ckpt_path", "https://127.0.0.1:1/last.ckpt"]) == 1
    assert "no such checkpoint" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("write", [hostile_array, hostile_pickle])
@pytest.mark.parametrize("name", ["image", "label", "foreground"])
def test_a_pickle_in_the_cache_is_refused(name, write, phantom, tmp_path, trap):
    data = DecathlonDataModule(str(phantom), folds=2, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    for file in (tmp_path / "cache").glob(f"*/{name}.npy"):
        write(file, trap)
    with pytest.raises(UserError, match=rf"{name}\.npy: not what preprocessing wrote .*Remove"):
        getattr(data._cached(data.split.train).cases[0], name)


def test_a_pickle_as_splits_is_refused(phantom, tmp_path, trap, capsys):
    splits = hostile_pickle(tmp_path / "splits.json", trap)
    words = [*TINY, "--data.root", str(phantom), "--data.splits_file", str(splits)]
    assert main(["fit", *words, "--run_dir", str(tmp_path / "run")]) == 1
    assert "splits.json: no split for fold 0" in capsys.readouterr().err.splitlines()[-1]


def test_a_pickle_as_slices_is_refused(tmp_path, trap):
    hostile_array(tmp_path / "x.npy", trap)
    with zipfile.ZipFile(tmp_path / "slices.npz", "w") as file:
        file.write(tmp_path / "x.npy", "class_names.npy")
    for path in (tmp_path / "slices.npz", hostile_pickle(tmp_path / "bare.npz", trap)):
        with pytest.raises(UserError, match="no slices of a can be read from it"):
            read_slices(path, "a")


def test_predict_reads_no_yaml(tmp_path, capsys):
    (tmp_path / "x.yaml").write_text("input: [scan.nii.gz]\n")
    assert main(["predict", "--config", str(tmp_path / "x.yaml")]) in (1, 2)
    assert "Traceback" not in capsys.readouterr().err
    source = Path(__file__).parents[1] / "src" / "rare_lightning"
    assert not any("yaml" in path.read_text().lower() for path in source.glob("inference/*.py"))


@pytest.mark.parametrize(
    "word", ["pickle.load", "pickle.Unpickler", "joblib", "allow_pickle=True", "weights_only=False"]
)
def test_no_code_of_ours_unpickles(word):
    source = Path(__file__).parents[1] / "src" / "rare_lightning"
    assert [path for path in source.rglob("*.py") if word in path.read_text()] == []
