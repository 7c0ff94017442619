"""Hashes of content: they change with it, and only with it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import fsspec
import pytest

from velocity.data import fingerprint
from velocity.data.fingerprint import content_hash, digest, folder_hash, remote_hash


def test_a_digest_is_the_same_in_every_run_and_for_every_order_of_keys():
    # of the text `{"a": 1, "b": [2]}`; a change of it would empty every user's cache
    expected = hashlib.blake2b(b'{"a": 1, "b": [2]}', digest_size=16).hexdigest()
    assert digest({"b": [2], "a": 1}) == digest({"a": 1, "b": [2]}) == expected
    assert digest([1, 2]) != digest([2, 1])
    assert digest(1) != digest("1")


def test_a_files_hash_changes_with_its_content_and_not_with_its_name(tmp_path: Path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("x")
    other.write_text("x")
    assert content_hash(one, tmp_path / "cache") == content_hash(other, tmp_path / "cache")
    other.write_text("y")
    assert content_hash(one, tmp_path / "cache") != content_hash(other, tmp_path / "cache")


def test_a_change_that_keeps_size_and_time_is_seen_by_the_time_of_the_change(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("x")
    before = content_hash(path, tmp_path / "cache")
    times = path.stat()
    path.write_text("y")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert content_hash(path, tmp_path / "cache") != before


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "a"
    path.write_text("x")
    first = content_hash(path, tmp_path / "cache")
    monkeypatch.setattr(fingerprint, "BLOCK", "no number")  # so that reading fails, as the last lines show
    assert content_hash(path, tmp_path / "cache") == first
    path.write_text("y")
    with pytest.raises(TypeError):
        content_hash(path, tmp_path / "cache")


def test_a_torn_note_is_not_believed(tmp_path: Path):
    path = tmp_path / "a"
    path.write_text("x")
    first = content_hash(path, tmp_path / "cache")
    [note] = (tmp_path / "cache" / "hashes").iterdir()
    for torn in (first[:7], first, note.read_text().replace(first[0], "x", 1)):
        note.write_text(torn)
        assert content_hash(path, tmp_path / "cache") == first


def test_a_folders_hash_changes_with_a_name_or_a_content_and_not_with_the_order(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    files = [tmp_path / "a", tmp_path / "b"]
    first = folder_hash(files, tmp_path / "cache")
    assert folder_hash(files[::-1], tmp_path / "cache") == first
    (tmp_path / "b").rename(tmp_path / "c")
    assert folder_hash([tmp_path / "a", tmp_path / "c"], tmp_path / "cache") != first
    assert folder_hash(files[:1], tmp_path / "cache") != first


def test_a_remote_files_hash_changes_with_what_its_file_system_says_of_it():
    memory = fsspec.filesystem("memory")
    memory.pipe("/hashes/a.jsonl", b"one")
    first = remote_hash("memory://hashes/a.jsonl")
    assert remote_hash("memory://hashes/a.jsonl") == first
    memory.pipe("/hashes/a.jsonl", b"two")  # of the same size
    assert remote_hash("memory://hashes/a.jsonl") != first


def test_a_remote_folder_changes_with_each_of_its_files():
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        memory.pipe(f"/saved/{name}.arrow", b"one")
    first = remote_hash("memory://saved")
    assert remote_hash("memory://saved") == first
    memory.pipe("/saved/b.arrow", b"two")
    assert remote_hash("memory://saved") != first


def test_a_server_that_says_nothing_of_a_file_is_never_served_from_the_cache(monkeypatch: pytest.MonkeyPatch):
    memory = fsspec.filesystem("memory")
    memory.pipe("/silent.jsonl", b"one")
    monkeypatch.setattr(type(memory), "info", lambda self, path, **named: {"name": path, "type": "file"})
    assert remote_hash("memory://silent.jsonl") != remote_hash("memory://silent.jsonl")
