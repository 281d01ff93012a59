"""Fixtures shared by all tests: a tiny phantom task, and a cache of its own."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from rare_lightning.data import make_phantom

# Lightning calls deprecated parts of jsonargparse, which says so once a process, in whichever test comes first.
os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "rare_lightning"


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks") / "phantom"
    make_phantom(str(root), cases=6, unlabelled=1, size=[24, 28, 24])
    return root


@pytest.fixture
def ctrl_c_kept() -> Iterator[None]:
    """Lightning's end of a run by Ctrl-C lets no other through."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
