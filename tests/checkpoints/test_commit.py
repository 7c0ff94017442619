"""A checkpoint is whole or does not exist, and what changed afterwards is found."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from velocity.checkpoints.commit import (
    MANIFEST,
    MARKER,
    commit,
    committed,
    damage,
    discard,
    entry_of,
    manifest_of,
    name_of,
    remove,
    step_of,
    temporary_of,
)


def made(checkpoints: Path, step: int, content: bytes = b"weights") -> Path:
    """A committed checkpoint of one file."""
    final = checkpoints / name_of(step)
    temporary = temporary_of(final)
    temporary.mkdir(parents=True)
    (temporary / "part").write_bytes(content)
    commit(final, {"part": entry_of(temporary / "part")})
    return final


def test_a_commit_leaves_files_manifest_and_marker_and_nothing_beside(tmp_path: Path) -> None:
    final = made(tmp_path, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000012"]
    assert {path.name for path in final.iterdir()} == {"part", MANIFEST, MARKER}
    assert damage(final) is None and manifest_of(final) == {"part": entry_of(final / "part")}


def test_steps_and_names_are_each_others(tmp_path: Path) -> None:
    for step in (0, 7, 123_456_789):
        assert step_of(Path(name_of(step))) == step
    assert step_of(Path("step-12")) == step_of(Path("steps")) == step_of(temporary_of(tmp_path / name_of(3))) == -1


def test_the_marked_ones_come_in_the_order_of_their_steps(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000, 5):
        made(tmp_path, step)
    (tmp_path / "step-00000007").mkdir()
    (tmp_path / "step-copy").mkdir()
    (tmp_path / "step-copy" / MARKER).touch()
    assert [step_of(folder) for folder in committed(tmp_path)] == [5, 99_999_999, 100_000_000]


def test_a_hash_is_that_of_the_whole_file_whatever_its_size(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(os.urandom((1 << 22) + 17))
    expected = subprocess.run(["sha256sum", str(file)], capture_output=True, text=True, check=True).stdout.split()[0]
    assert entry_of(file).sha256 == expected and entry_of(file).size == (1 << 22) + 17


def test_a_change_of_one_bit_a_cut_and_a_missing_file_are_found(tmp_path: Path) -> None:
    final = made(tmp_path, 1)
    file = final / "part"
    file.write_bytes(b"weightr")
    assert damage(final) == "part has changed since it was written"
    assert damage(final, sizes_only=True) is None and damage(final, []) is None
    file.write_bytes(b"weigh")
    assert damage(final, sizes_only=True) == "part has 5 bytes of 7"
    file.unlink()
    assert damage(final) == "part is missing"


@pytest.mark.parametrize("name", [MANIFEST, MARKER])
def test_a_manifest_that_is_not_the_committed_one_is_found(tmp_path: Path, name: str) -> None:
    final = made(tmp_path, 1)
    (final / name).write_bytes((final / name).read_bytes().replace(b"e", b"f"))
    assert damage(final) == "manifest.json is not the one that was committed"


def test_a_removed_one_is_gone_and_a_discarded_one_was_none(tmp_path: Path) -> None:
    final = made(tmp_path, 1)
    remove(final)
    temporary_of(final).mkdir()
    discard(temporary_of(final))
    assert not list(tmp_path.iterdir())


def test_a_marker_that_could_not_be_written_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text = Path.write_text

    def full(path: Path, text: str) -> int:
        if MARKER in path.name:
            path.touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, text)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError):
        made(tmp_path, 1)
    assert committed(tmp_path) == []


KILLED = """
import os, sys
from pathlib import Path
import velocity.checkpoints.commit as module
from velocity.checkpoints.commit import commit, entry_of, name_of, temporary_of
final, stop = Path(sys.argv[1]) / name_of(2), int(sys.argv[2])
temporary = temporary_of(final)
temporary.mkdir()
(temporary / "part").write_bytes(b"later")
calls = 0
def killed(*arguments):
    global calls
    calls += 1
    if calls == stop:
        os.kill(os.getpid(), 9)
module.sync, module.sync_all = killed, killed
commit(final, {"part": entry_of(temporary / "part")})
"""


@pytest.mark.parametrize(("moment", "there"), [(1, [1]), (2, [1]), (3, [1]), (4, [1, 2]), (5, [1, 2])])
def test_a_kill_at_any_moment_leaves_a_whole_one_or_none(tmp_path: Path, moment: int, there: list[int]) -> None:
    made(tmp_path, 1)
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), str(moment)], check=False)
    found = committed(tmp_path)
    assert [step_of(folder) for folder in found] == there
    assert not [damage(folder) for folder in found if damage(folder)]
    discard(temporary_of(tmp_path / name_of(2)))
    made(tmp_path, 3)
    made(tmp_path, 2) if 2 not in there else None  # what was half done is no obstacle
    assert [step_of(folder) for folder in committed(tmp_path)] == [1, 2, 3]
