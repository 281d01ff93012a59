"""Fixtures shared by all tests: a tiny phantom task, and a cache of its own."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torchio as tio

from rare_lightning.data import make_phantom
from rare_lightning.data.pyramid import ToLevelGrid

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


COARSE = {"hippocampus_001": (2, 2, 2), "hippocampus_004": (2, 2, 2), "hippocampus_005": (1, 1, 4)}


@pytest.fixture(scope="session")
def mixed(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom, some of whose scans were taken at 2 mm or in slices of 4 mm, with splits.json.

    Every role has a fine scan and a coarse one.
    """
    root = shutil.copytree(phantom, tmp_path_factory.mktemp("mixed") / "task")
    for case, stride in COARSE.items():
        paths = [root / folder / f"{case}.nii.gz" for folder in ("imagesTr", "labelsTr")]
        subject = tio.ToCanonical()(tio.Subject(image=tio.ScalarImage(paths[0]), label=tio.LabelMap(paths[1])))
        whole = tuple(n // 4 * 4 for n in subject.spatial_shape)
        taken = ToLevelGrid(stride)(tio.CropOrPad(whole)(subject))
        for path, image in zip(paths, (taken.image, taken.label), strict=True):
            image.save(path)
    names = [f"hippocampus_{i:03d}" for i in range(1, 7)]
    splits = [{"train": names[:2], "val": names[2:4], "test": names[4:]}]
    (root / "splits.json").write_text(json.dumps(splits))
    return root


@pytest.fixture
def ctrl_c_kept() -> Iterator[None]:
    """Lightning's end of a run by Ctrl-C lets no other through."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)
