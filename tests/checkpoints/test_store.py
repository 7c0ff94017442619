"""A file is there when the store has proven it, and it comes back as it was or not at all."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.checkpoints.mirrored import Server
from velocity.checkpoints.commit import Entry, entry_of
from velocity.checkpoints.store import Altered, FolderStore, S3Store, Store, check_installed, open_store
from velocity.errors import UserError

SMALLEST_PART = 5 << 20  # that S3 takes


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "mirror"))
    server: Server = request.getfixturevalue("s3")
    return open_store(server.bucket())


def make(tmp_path: Path, size: int = 1000, seed: int = 0) -> Path:
    file = tmp_path / f"file-{seed}"
    file.write_bytes(Random(seed).randbytes(size))
    return file


def test_the_address_says_which_store(tmp_path: Path, s3: Server):
    assert type(open_store(str(tmp_path))) is FolderStore
    assert type(open_store("s3://bucket/run")) is S3Store


def test_a_file_comes_back_as_it_was_and_is_sent_once(store: Store, tmp_path: Path):
    file, back = make(tmp_path), tmp_path / "deep" / "back"
    entry = entry_of(file)
    assert not store.has("a/file", entry)
    assert store.put(file, "a/file", entry)
    assert store.has("a/file", entry)
    assert not store.put(file, "a/file", entry)
    store.fetch("a/file", back, entry)
    assert back.read_bytes() == file.read_bytes()
    assert store.names("a") == ["file"]
    assert store.names() == ["a", "proofs"]


def test_a_file_that_is_there_without_a_proof_is_proven_and_not_sent(store: Store, tmp_path: Path):
    file = make(tmp_path)
    entry = entry_of(file)
    store.put(file, "a/file", entry)
    store.doubt("a/file")
    assert not store.has("a/file", entry)
    assert not store.put(file, "a/file", entry)
    assert store.has("a/file", entry)


def test_a_file_that_was_altered_there_is_sent_anew(store: Store, tmp_path: Path):
    file, other = make(tmp_path), make(tmp_path, seed=1)
    entry = entry_of(file)
    store.put(file, "a/file", entry)
    store.write("a/file", other.read_bytes())  # of the same size
    assert not store.has("a/file", entry)
    with pytest.raises(Altered, match="a/file has changed since it was put there"):
        store.fetch("a/file", tmp_path / "back", entry)
    assert store.put(file, "a/file", entry)
    store.fetch("a/file", tmp_path / "back", entry)


def test_what_is_missing_or_cut_is_named(store: Store, tmp_path: Path):
    file = make(tmp_path)
    with pytest.raises(Altered, match="a/file is missing"):
        store.fetch("a/file", tmp_path / "back", entry_of(file))
    store.write("a/file", file.read_bytes()[:600])
    with pytest.raises(Altered, match="a/file has 600 bytes of 1,000"):
        store.fetch("a/file", tmp_path / "back", entry_of(file))
    assert store.read("b/file") is None
    assert store.names("b") == []


def test_a_damaged_file_is_not_sent(store: Store, tmp_path: Path):
    with pytest.raises(Altered, match="file-0 has changed since it was written"):
        store.put(make(tmp_path), "a/file", Entry(1000, "0" * 64))
    assert store.names("a") == []


def test_a_folder_goes_with_its_proofs(store: Store, tmp_path: Path):
    file = make(tmp_path)
    for name in ("a/file", "b/file"):
        store.put(file, name, entry_of(file))
    store.remove_folder("a")
    store.remove_folder("absent")
    assert store.names() == ["b", "proofs"]
    assert store.names("proofs") == ["b"]


def test_s3_vouches_for_what_arrived_so_nothing_is_read_back(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(S3Store, "part_bytes", SMALLEST_PART)
    store = open_store(s3.bucket())
    for seed, size in enumerate((1000, 2 * SMALLEST_PART + 77)):
        file = make(tmp_path, size, seed)
        assert store.put(file, f"a/{seed}", entry_of(file))
        store.doubt(f"a/{seed}")
        assert not store.put(file, f"a/{seed}", entry_of(file))
        assert not [line for line in s3.requests if line.startswith("GET ") and line.endswith(f"/runs/sft/a/{seed}")]
        store.fetch(f"a/{seed}", tmp_path / "back", entry_of(file))
    assert len(s3.sent(r"a/1\?")) == 3


@pytest.mark.parametrize(("url", "extra"), [("s3://b/r", "s3"), ("gs://b/r", "gs"), ("az://b/r", "az")])
def test_a_missing_package_is_named_before_the_start(url: str, extra: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("velocity.checkpoints.store.find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"pip install 'ProfoundVelocity\[{extra}\]'"):
        check_installed(url)
    check_installed("a/folder")
