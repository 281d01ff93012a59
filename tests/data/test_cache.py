import multiprocessing
import os
import re

import numpy as np
import pytest
import torch

from rare_lightning.data import cache
from rare_lightning.data.cache import cache_key, default_cache_dir, find_cached, write_cached
from rare_lightning.data.preprocessing import Preprocessing
from rare_lightning.data.task import read_task
from rare_lightning.errors import UserError

SETTINGS = Preprocessing((1.0, 1.0, 1.0))
STRIDES = [(1, 1, 1), (2, 2, 2)]


@pytest.fixture
def case(phantom):
    return read_task(phantom).cases[0]


def test_an_entry_holds_what_preprocessing_made(case, tmp_path):
    assert find_cached(case, SETTINGS, STRIDES, tmp_path) is None
    entry = write_cached(case, SETTINGS, STRIDES, tmp_path)
    subject = SETTINGS.on_base_grid(case)
    assert np.array_equal(entry.image, subject.image.numpy())
    assert np.array_equal(entry.label, subject.label.numpy())
    assert np.array_equal(entry.affine, subject.image.affine)
    assert entry.spacing == pytest.approx(subject.spacing)
    assert entry.shape == subject.spatial_shape
    assert isinstance(entry.image, np.memmap)
    assert find_cached(case, SETTINGS, STRIDES, tmp_path) == entry


def test_other_levels_and_normalisations_share_an_entry(case, tmp_path):
    first = write_cached(case, SETTINGS, STRIDES, tmp_path)
    for settings, strides in ((SETTINGS, STRIDES[:1]), (Preprocessing((1.0, 1.0, 1.0), "percentile"), STRIDES)):
        assert find_cached(case, settings, strides, tmp_path) is None
        other = write_cached(case, settings, strides, tmp_path)
        assert find_cached(case, settings, strides, tmp_path) == other
        assert other.folder == first.folder
        expected = settings.level_statistics(torch.from_numpy(np.array(first.image)), (1, 1, 1), strides)
        for found, values in zip(other.statistics, expected, strict=True):
            torch.testing.assert_close(found, values)
    assert len(list(first.folder.glob("statistics-*.npy"))) == 3


def test_foreground_samples_are_foreground_of_their_class(case, tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "FOREGROUND_SAMPLES", 50)
    entry = write_cached(case, SETTINGS, STRIDES, tmp_path)
    assert np.bincount(entry.foreground[:, 0]).tolist() == [0, 50, 50]
    assert len(np.unique(entry.foreground, axis=0)) == 100
    for value, *voxel in entry.foreground:
        assert entry.label[(0, *voxel)] == value


def test_the_key_depends_on_content_and_spacing_and_not_on_the_place(case, tmp_path):
    key = cache_key(case, SETTINGS)
    copy = tmp_path / "elsewhere.nii.gz"
    copy.write_bytes(case.images[0].read_bytes())
    moved = type(case)("other_name", (copy,), case.label)
    assert cache_key(moved, SETTINGS) == key
    assert cache_key(case, Preprocessing((1.0, 1.0, 2.0))) != key
    assert cache_key(case, Preprocessing((1.0, 1.0, 1.0), foreground="otsu")) == key  # normalised when it is read
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert cache_key(moved, SETTINGS) != key


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), OSError("15444 requested and 15328 written")], ids=str
)
def test_a_full_disk_is_said_and_leaves_nothing_behind(case, tmp_path, monkeypatch, error):
    monkeypatch.setattr(np, "save", lambda *_: (_ for _ in ()).throw(error))
    said = re.escape(
        f"{tmp_path}: cannot be written ({error.strerror or error}). Free space, or give another data.cache"
    )
    with pytest.raises(UserError, match=said):
        write_cached(case, SETTINGS, STRIDES, tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("content", [None, "", "[]", "{}"])
def test_an_entry_that_says_no_place_is_named(case, tmp_path, content):
    entry = write_cached(case, SETTINGS, STRIDES, tmp_path)
    (entry.folder / "case.json").unlink() if content is None else (entry.folder / "case.json").write_text(content)
    with pytest.raises(UserError, match=r"case\.json: not what preprocessing wrote .*Remove"):
        entry.affine  # noqa: B018  # it is read when it is asked for


def test_others_may_read_an_entry(case, tmp_path):
    assert write_cached(case, SETTINGS, STRIDES, tmp_path).folder.stat().st_mode & 0o055 == 0o055


def test_a_lost_race_uses_the_entry_of_the_winner(case, tmp_path):
    first = write_cached(case, SETTINGS, STRIDES, tmp_path)
    before = os.stat(first.folder / "image.npy").st_ino
    assert write_cached(case, SETTINGS, STRIDES, tmp_path) == first
    assert os.stat(first.folder / "image.npy").st_ino == before


def test_an_unwritable_cache_is_an_error(case, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file: cannot be written \(File exists\)"):
        write_cached(case, SETTINGS, STRIDES, tmp_path / "file")


@pytest.mark.slow
def test_processes_that_start_at_once_do_not_disturb_each_other(case, tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        entries = pool.starmap(write_cached, [(case, SETTINGS, STRIDES, tmp_path)] * 8)
    assert len(set(entries)) == 1
    assert os.listdir(tmp_path) == [entries[0].folder.name]


def test_the_cache_follows_the_platform_convention(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "rare_lightning"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(default_cache_dir()) == "/home/somebody/.cache/rare_lightning"
