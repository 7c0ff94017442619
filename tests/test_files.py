"""A file or folder is whole, or it is as it was before."""

from __future__ import annotations

from pathlib import Path

import pytest

from velocity.files import whole_folder, write_atomically


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "sub" / "a.txt"
    write_atomically(path, "before")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(path, "after \ud800")
    assert path.read_text() == "before"
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]
    write_atomically(path, "after")
    assert path.read_text() == "after"


class Dies(Exception):
    """Stands for whatever ends the writing."""


def test_a_folder_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with whole_folder(tmp_path / "a") as temporary:
            (temporary / "part").mkdir()
            (temporary / "part" / "x").write_text(content)
            assert not (tmp_path / "a" / "part" / "x").exists() or content == "two"
        assert (tmp_path / "a" / "part" / "x").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("one")
    with pytest.raises(Dies), whole_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("two")
        raise Dies
    assert (tmp_path / "a" / "x").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a[1].77.tmp", ".a1.77.tmp", "other"):
        (tmp_path / name).mkdir()
    with whole_folder(tmp_path / "a[1]"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a1.77.tmp", "a[1]", "other"]


def test_an_error_of_a_write_names_the_file_though_the_system_does_not(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, whole_folder(tmp_path / "a"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "a")
