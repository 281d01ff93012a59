"""Files and folders that appear whole or not at all."""

import pytest

from rare_lightning.files import appearing, replacing, unused


def test_a_file_takes_the_place_of_another_when_it_is_whole(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as part:
        part.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_are_shared_are_written_side_by_side(tmp_path):
    path = tmp_path / "table.csv"
    with replacing(path, shared=True) as one, replacing(path, shared=True) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # which was left last
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    folder = tmp_path / "above" / "task"
    with pytest.raises(RuntimeError), appearing(folder) as scratch:
        (scratch / "file").touch()
        raise RuntimeError
    assert not any(folder.parent.iterdir())
    with appearing(folder) as scratch:
        (scratch / "file").touch()
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]


def test_unused_names_count_up(tmp_path):
    path = tmp_path / "config.yaml"
    assert unused(path) == path
    for _ in range(2):
        unused(path).touch()
    assert unused(path).name == "config-3.yaml"
