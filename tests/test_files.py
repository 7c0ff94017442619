"""A file or folder is whole, or it is as it was before."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from velocity import files
from velocity.files import make_private, sweep, whole_folder, why_untrusted, write_atomically


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


def test_a_file_about_a_run_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_PASSWORD", "not-to-be-seen-7")
    write_atomically(tmp_path / "a.json", '{"why": "not-to-be-seen-7 is wrong"}')
    assert (tmp_path / "a.json").read_text() == '{"why": "*** is wrong"}'


@pytest.fixture
def _umask_stays() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.usefixtures("_umask_stays")
@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o750), (0o077, 0o700), (0o002, 0o770), (0o000, 0o770)])
def test_a_private_folder_is_closed_to_others_and_open_to_the_group_as_the_umask_says(
    tmp_path: Path, umask: int, expected: int
):
    os.umask(umask)
    make_private(tmp_path / "above" / "folder")
    assert mode(tmp_path / "above" / "folder") == expected


def test_an_empty_folder_that_is_open_to_all_is_closed_and_one_with_something_in_it_is_not(tmp_path: Path):
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    (tmp_path / "full" / "state").touch()
    for name in ("empty", "full"):
        make_private(tmp_path / name)
    assert (mode(tmp_path / "empty"), mode(tmp_path / "full")) == (0o770, 0o777)
    assert why_untrusted(tmp_path / "empty") is None
    assert why_untrusted(tmp_path / "full") == "anybody may write into it"
    assert os.listdir(tmp_path / "full") == ["state"]


ME, OTHER, ROOT = 1000, 1001, 0


@pytest.mark.parametrize(
    ("owner", "mode", "user", "shared", "trusted"),
    [
        (ME, 0o700, ME, False, True),
        (ME, 0o770, ME, False, True),  # a team's folder: its group is chosen
        (ROOT, 0o755, ME, False, True),  # made in a container, or by who can change all anyway
        (OTHER, 0o755, ME, False, False),
        (OTHER, 0o775, ME, True, True),  # a team's cache
        (OTHER, 0o755, ROOT, False, True),  # in a container, over a folder of the host
        (ME, 0o777, ME, False, False),
        (ME, 0o1777, ME, True, False),  # as /tmp: whoever comes first may put something there
        (OTHER, 0o777, ROOT, False, False),
    ],
)
def test_a_folder_is_trusted_where_its_owner_and_its_mode_allow_it(
    tmp_path: Path, owner: int, mode: int, user: int, shared: bool, trusted: bool
):
    assert (files._distrust(owner, mode, user, shared=shared) is None) == trusted


def test_where_no_modes_are_kept_nothing_can_be_said_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tmp_path.chmod(0o777)
    assert why_untrusted(tmp_path)
    make = tempfile.mkdtemp

    def on_a_share(prefix: str, dir: Path) -> str:  # every folder of it looks like this one
        made = make(prefix=prefix, dir=dir)
        Path(made).chmod(0o777)
        return str(made)

    monkeypatch.setattr(tempfile, "mkdtemp", on_a_share)
    assert why_untrusted(tmp_path) is None
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_is_swept_of_one_file_or_of_all(tmp_path: Path):
    for name in (".a.txt.7.tmp", ".a.txt.8.tmp", ".b.txt.7.tmp", "a.txt", ".hidden", ".model.9.tmp/part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    sweep(tmp_path, "a.txt")
    assert sorted(os.listdir(tmp_path)) == [".b.txt.7.tmp", ".hidden", ".model.9.tmp", "a.txt"]
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.txt"]
    sweep(tmp_path / "not there")
