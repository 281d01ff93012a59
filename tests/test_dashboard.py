import json
import sys

import pytest

from rare_lightning.cli import main


def test_a_missing_extra_is_answered_with_its_install_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["dashboard", "--entity", "team", "--dry_run"]) == 1
    assert 'pip install "rare-lightning[wandb-dashboard]"' in capsys.readouterr().err


def test_a_dry_run_writes_what_would_be_sent(tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="pip install 'rare-lightning[wandb-dashboard]'")
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "spec.json"
    words = ["--entity", "team", "--project", "thesis", "--levels", "2", "--dry_run", "--output", str(path)]
    assert main(["dashboard", *words]) == 0
    assert str(path) in capsys.readouterr().out
    spec = json.loads(path.read_text())
    assert spec["workspace"]["entity"] == "team"
    assert spec["report"]["project"]["name"] == "thesis"
    for part in spec.values():
        text = json.dumps(part)
        for name in (
            "test/fine/dice/level_2", "val/dice/level_0", "train/level_1/consistency", "val/slices/case_1",
            "test/cases", "displayName",
        ):  # fmt: skip
            assert name in text
        assert "level_3" not in text


def test_a_dry_run_makes_its_folder(tmp_path):
    pytest.importorskip("wandb_workspaces", reason="pip install 'rare-lightning[wandb-dashboard]'")
    path = tmp_path / "new" / "spec.json"
    assert main(["dashboard", "--entity", "team", "--dry_run", "--output", str(path)]) == 0
    assert json.loads(path.read_text()).keys() == {"workspace", "report"}


def test_without_a_key_there_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("wandb_workspaces", reason="pip install 'rare-lightning[wandb-dashboard]'")
    monkeypatch.setattr("wandb.login", lambda prompt: False)
    assert main(["dashboard", "--entity", "team"]) == 1
    assert capsys.readouterr().err.strip() == (
        "rare: error: there is no Weights & Biases key: wandb login, or set WANDB_API_KEY"
    )
