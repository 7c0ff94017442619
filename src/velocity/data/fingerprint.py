"""What content a file has, as a hash that is computed once: a second look costs a stat."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import fsspec

from velocity.files import write_atomically

BLOCK = 1 << 20


def digest(value: Any) -> str:
    """A hash of plain values, the same on every machine and in every run."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


def content_hash(path: Path, cache: Path) -> str:
    """The hash of a file's bytes; kept in `cache` under the file's path, size and times, with a hash of the hash."""
    status = path.stat()
    state = [str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    note = cache / "hashes" / f"{digest(state)}.txt"
    if note.is_file():
        known, _, check = note.read_text(encoding="utf-8", errors="replace").partition(" ")
        if check == digest(known):
            return known
    found = hash_of(path)
    write_atomically(note, f"{found} {digest(found)}")
    return found


def hash_of(path: Path) -> str:
    """The hash of a file's bytes."""
    hasher = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def folder_hash(files: Iterable[Path], cache: Path) -> str:
    """One hash over the names and contents of some files."""
    return digest([(path.name, content_hash(path, cache)) for path in sorted(files)])


def remote_hash(url: str) -> str:
    """What a remote file system says of the content of a file, or of all files of a folder: entity tag, size, time.

    Where it says nothing the hash is a new one each time, so that no cache serves what may have changed.
    """
    system, inner = fsspec.core.url_to_fs(url)
    found = system.find(inner, detail=True) if system.isdir(inner) else {inner: system.info(inner)}
    keys = ("ETag", "etag", "md5Hash", "Content-MD5", "Digest", "generation", "size",
            "LastModified", "Last-Modified", "last_modified", "mtime", "created")  # fmt: skip
    facts = [[name, [str(info[key]) for key in keys if info.get(key) is not None]] for name, info in found.items()]
    silent = not all(known for _, known in facts)
    return digest([url, facts, uuid.uuid4().hex if silent else None])
