"""Files below one address: put so that the store proves them, fetched so that they are whole. It knows no checkpoint.

A file counts as there when a proof says so: its hash, and the version of the object that had it. A proof is written
once the store itself has shown that hash, or the file was read back. An object that changes has another version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec

from velocity.checkpoints.commit import Entry, entry_of
from velocity.checkpoints.multipart import Parts, checksum, checksums
from velocity.errors import UserError
from velocity.files import make_private, sweep, whole_file

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
PROOFS = "proofs"
BLOCK_BYTES = 8 << 20
PART_BYTES = 64 << 20  # of a large object in S3


class Altered(ValueError):
    """A file is missing, or not the one that was put there."""


def scheme_of(url: str) -> str:
    """What stands before ://; nothing for a folder."""
    return url.partition("://")[0] if "://" in url else ""


def check_installed(url: str) -> None:
    """Nothing, or UserError where the package of the address is absent; it imports none."""
    scheme = scheme_of(url)
    package = PACKAGES.get(scheme)
    if package and find_spec(package) is None:
        what = f"checkpoint.mirror: {scheme}:// needs {package}, which is not installed"
        raise UserError(what, "checkpoint.mirror", f"pip install 'ProfoundVelocity[{scheme}]'")


def open_store(url: str) -> Store:
    """The store that the address is of."""
    check_installed(url)
    match scheme_of(url):
        case "":
            return FolderStore(str(Path(url).expanduser().absolute()))
        case "s3":
            return S3Store(url)
        case _:
            return Store(url)


class Store:
    """Any object store that fsspec knows. Names are relative to its address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        # listings change under us, by other nodes: none is kept
        self.system, self.root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)

    def put(self, file: Path, name: str, entry: Entry) -> bool:
        """The store has the file, proven; False where it had it already. Altered where the file is not as `entry` says.

        OSError where what arrived is not what was sent.
        """
        if self.has(name, entry):
            return False
        if entry_of(file) != entry:
            raise Altered(f"{file} has changed since it was written")
        sent = not self._proven(name, file, entry)
        if sent:
            self._send(file, name)
            if not self._proven(name, file, entry):
                raise OSError(f"{name} did not arrive as it was sent")
        return sent

    def has(self, name: str, entry: Entry) -> bool:
        """True where the file is there, and its proof is of it."""
        proof, there = self.read(_proof(name)), self._look(name)
        if proof is None or there is None:
            return False
        try:
            return bool(json.loads(proof) == self._statement(entry, there))
        except ValueError:
            return False  # torn

    def proven(self, name: str) -> Entry | None:
        """What the file was proven to be; None where it was not."""
        try:
            said = json.loads(self.read(_proof(name)) or b"null")
            return Entry(int(said["size"]), str(said["sha256"]))
        except (ValueError, TypeError, KeyError):
            return None  # torn

    def fetch(self, name: str, file: Path, entry: Entry) -> None:
        """`file` is the one of that name, whole; Altered where the store's is not as `entry` says."""
        if file.is_file() and entry_of(file) == entry:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.system.get_file(self._path(name), str(file))
        except FileNotFoundError:
            raise Altered(f"{name} is missing") from None
        if (size := file.stat().st_size) != entry.size:
            raise Altered(f"{name} has {size:,} bytes of {entry.size:,}")
        if entry_of(file) != entry:
            raise Altered(f"{name} has changed since it was put there")

    def read(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""
        try:
            content: bytes = self.system.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return content

    def write(self, name: str, content: bytes) -> None:
        """The small file has that content."""
        self.system.pipe_file(self._path(name), content)

    def names(self, folder: str = "") -> list[str]:
        """What lies in a folder."""
        self.system.invalidate_cache()
        try:
            found = self.system.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def remove(self, name: str) -> None:
        """The file is not there."""
        with contextlib.suppress(FileNotFoundError):
            self.system.rm_file(self._path(name))

    def remove_folder(self, name: str) -> None:
        """Neither the folder nor the proofs of its files are there."""
        for folder in (name, f"{PROOFS}/{name}"):
            with contextlib.suppress(FileNotFoundError):
                self.system.rm(self._path(folder), recursive=True)

    def doubt(self, name: str) -> None:
        """The file counts as absent until it is proven anew."""
        self.remove(_proof(name))

    def check(self) -> None:
        """Nothing, or whatever the store says where it cannot be read: a bucket that does not exist, no rights."""
        self.system.info(self.root.split("/")[0])
        self.names()

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}".rstrip("/")

    def _look(self, name: str) -> dict[str, Any] | None:
        """What the store says of a file; None where there is none."""
        self.system.invalidate_cache()
        try:
            found: dict[str, Any] = self.system.info(self._path(name))
        except FileNotFoundError:
            return None
        return found if found["type"] == "file" else None

    def _statement(self, entry: Entry, there: dict[str, Any]) -> dict[str, Any]:
        """What the proof of a file says."""
        version = next((str(there[key]) for key in ("ETag", "etag", "mtime") if there.get(key)), "")
        return {"size": there["size"], "sha256": entry.sha256, "version": version}

    def _proven(self, name: str, file: Path, entry: Entry) -> bool:
        """True, and a proof written, where the store has the file with that hash."""
        there = self._look(name)
        if there is None or there["size"] != entry.size:
            return False
        vouched = self._vouched(name, file, entry)
        if not (self._read_back(name) == entry.sha256 if vouched is None else vouched):
            return False
        self.write(_proof(name), json.dumps(self._statement(entry, there)).encode())
        return True

    def _vouched(self, name: str, file: Path, entry: Entry) -> bool | None:
        """Whether the store's own SHA-256 of the object is the file's; None where it has none."""
        return None

    def _read_back(self, name: str) -> str:
        digest = hashlib.sha256()
        with self.system.open(self._path(name), "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def _send(self, file: Path, name: str) -> None:
        self.system.put_file(str(file), self._path(name))


class FolderStore(Store):
    """A folder, of another disk or of the network: files are synced, and appear whole."""

    def write(self, name: str, content: bytes) -> None:
        """The small file has that content, whole."""
        with self._whole_file(name) as temporary:
            temporary.write_bytes(content)

    def check(self) -> None:
        """Nothing, or OSError where the folder cannot be made."""
        make_private(Path(self.root))

    def _send(self, file: Path, name: str) -> None:
        with self._whole_file(name) as temporary:
            shutil.copyfile(file, temporary)

    def _whole_file(self, name: str) -> AbstractContextManager[Path]:
        """Where two nodes write the same file at once one of them fails, and tries again."""
        path = Path(self._path(name))
        sweep(path.parent, path.name)
        return whole_file(path)


class S3Store(Store):
    """S3: it checks the SHA-256 of all that arrives, and says it, so that nothing has to be read back."""

    part_bytes = PART_BYTES

    def remove_folder(self, name: str) -> None:
        """Neither the folder, its proofs, nor parts of an upload that did not end are there."""
        super().remove_folder(name)
        self._parts.abort(self._key(name) + "/")

    @property
    def _parts(self) -> Parts:
        return Parts(self.system, self.system.split_path(self.root)[0], self.part_bytes)

    def _key(self, name: str) -> str:
        return str(self.system.split_path(self._path(name))[1])

    def _vouched(self, name: str, file: Path, entry: Entry) -> bool | None:
        said = self._parts.call("head_object", Key=self._key(name), ChecksumMode="ENABLED").get("ChecksumSHA256")
        if not said:  # S3's likes know no checksums
            return None
        if entry.size <= self.part_bytes:
            return bool(said == checksum(bytes.fromhex(entry.sha256)))
        return bool(said.partition("-")[0] == self._parts.checksum_of(file))

    def _send(self, file: Path, name: str) -> None:
        if file.stat().st_size > self.part_bytes:
            self._parts.send(file, self._key(name))
            return
        content = file.read_bytes()
        self._parts.call(
            "put_object", Key=self._key(name), Body=content, **checksums(content), ChecksumAlgorithm="SHA256"
        )


def _proof(name: str) -> str:
    return f"{PROOFS}/{name}.json"
