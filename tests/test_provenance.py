import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from rare_lightning import provenance


def test_a_process_is_described_by_plain_values(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    monkeypatch.setattr(
        sys, "argv", ["/somewhere/bin/rare", "fit", "--config", "a b.yaml", "--data.root", "/home/me/Task04"]
    )
    described = provenance.describe_process()
    assert described["command"] == "rare fit --config 'a b.yaml' --data.root Task04"
    assert described["seed"] == 7
    assert described["versions"]["torch"] == version("torch")
    assert "CPU cores" in described["hardware"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--data.root=/home/alice/Task04", "--data.root=Task04"),
        ("nnU-Net=/home/alice/tables/nnunet.csv", "nnU-Net=nnunet.csv"),
        ("[/home/alice/a.ckpt, '/b.ckpt']", "[a.ckpt, 'b.ckpt']"),
        (
            '{"root": "/home/alice/x", "download": "https://host/folder"}',
            '{"root": "x", "download": "https://host/folder"}',
        ),
        ("--data.download=https://host/folder", "--data.download=https://host/folder"),
        ("runs/a", "runs/a"),
    ],
)
def test_a_command_is_kept_without_folders(monkeypatch, word, expected):
    monkeypatch.setattr(sys, "argv", ["rare", word])
    assert shlex.split(provenance.describe_process()["command"]) == ["rare", expected]


def test_a_modified_tree_is_told_from_a_committed_one(monkeypatch, tmp_path):
    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "module.py"))
    assert provenance.describe_process()["commit"] is None
    git("init")
    (tmp_path / "other.py").touch()
    git("add", "other.py")
    git("commit", "-m", "of a project that has this one in an environment")
    (tmp_path / "module.py").write_text("1")
    assert provenance.describe_process()["commit"] is None
    git("add", "module.py")
    git("commit", "-m", "one")
    head = git("rev-parse", "HEAD")[:12]
    assert provenance.describe_process()["commit"] == head
    (tmp_path / "module.py").write_text("2")
    assert provenance.describe_process()["commit"] == f"{head}-modified"


def test_a_machine_without_proc_is_described_too(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError()))
    monkeypatch.setattr(provenance.platform, "machine", lambda: "arm64")
    monkeypatch.setenv("PATH", "")
    described = provenance.describe_process()
    assert "arm64" in described["hardware"]
    assert described["commit"] is None


def test_peak_memory_never_falls_and_sees_what_was_held():
    before = provenance.peak_memory_gib()
    held = np.ones(2**27)  # 1 GiB
    assert provenance.peak_memory_gib() >= max(before, 1)
    del held
    assert provenance.peak_memory_gib() >= 1


def test_peak_memory_is_that_of_the_fullest_gpu(monkeypatch):
    monkeypatch.setattr(provenance.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(provenance.torch.cuda, "max_memory_allocated", lambda device: (device + 1) * 2**30)
    assert provenance.peak_memory_gib() == 2


def test_peak_memory_of_a_run_beside_a_gpu_is_that_of_the_process(monkeypatch):
    monkeypatch.setattr(provenance.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(provenance.torch.cuda, "max_memory_allocated", lambda device: 0)
    assert 0.01 < provenance.peak_memory_gib() < 1000


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert provenance.peak_memory_gib() is None
