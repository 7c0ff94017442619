"""Files below one address: put so that the store proves them, fetched so that they are whole. It knows no checkpoint.

A file counts as there when a proof says so: its hash, and the version of the object that had it. A proof is written
once the store itself has shown that hash, or the file was read back. An object that changes has another version.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import shutil
from base64 import b64encode
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import fsspec.asyn

from velocity.checkpoints.commit import Entry, entry_of
from velocity.errors import UserError
from velocity.files import make_private, sweep, whole_file

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs"}
PROOFS = "proofs"
BLOCK_BYTES = 8 << 20
PART_BYTES = 64 << 20  # of a large object; S3 takes from 5 MiB to 5 GiB
MOST_PARTS = 10_000
STREAMS = 4  # parts on their way at a time, each of them in memory


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
    """S3: it checks the SHA-256 of all that arrives, and says it, so that nothing has to be read back.

    A large object goes in parts, of which those of a process that was killed are taken up.
    """

    part_bytes = PART_BYTES

    def remove_folder(self, name: str) -> None:
        """Neither the folder, its proofs, nor parts of an upload that did not end are there."""
        super().remove_folder(name)
        for upload in self._uploads(f"{name}/"):
            self._call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def _call(self, method: str, **arguments: Any) -> Any:
        return self.system.call_s3(method, Bucket=self.system.split_path(self.root)[0], **arguments)

    def _key(self, name: str) -> str:
        return str(self.system.split_path(self._path(name))[1])

    def _uploads(self, name: str) -> list[dict[str, Any]]:
        """Uploads in parts that did not end, of keys that begin so."""
        with contextlib.suppress(PermissionError, FileNotFoundError):
            found = self._call("list_multipart_uploads", Prefix=self._key("") + "/" + name)
            return list(found.get("Uploads", []))
        return []

    def _vouched(self, name: str, file: Path, entry: Entry) -> bool | None:
        said = self._call("head_object", Key=self._key(name), ChecksumMode="ENABLED").get("ChecksumSHA256")
        if not said:  # S3's likes know no checksums
            return None
        if entry.size <= self.part_bytes:
            return bool(said == b64encode(bytes.fromhex(entry.sha256)).decode())
        # of an object in parts it is the hash of the parts' hashes, and behind a dash their number
        digests = (hashlib.sha256(part).digest() for part in self._parts(file))
        whole = hashlib.sha256(b"".join(digests)).digest()
        return bool(said.partition("-")[0] == b64encode(whole).decode())

    def _size_of_parts(self, size: int) -> int:
        return max(self.part_bytes, math.ceil(size / MOST_PARTS))

    def _parts(self, file: Path) -> Iterator[bytes]:
        size = self._size_of_parts(file.stat().st_size)
        with file.open("rb") as stream:
            while part := stream.read(size):
                yield part

    def _send(self, file: Path, name: str) -> None:
        size, key = file.stat().st_size, self._key(name)
        if size <= self.part_bytes:
            content = file.read_bytes()
            self._call("put_object", Key=key, Body=content, **_checksum(content), ChecksumAlgorithm="SHA256")
            return
        upload, there = self._begin(name)
        parts = fsspec.asyn.sync(self.system.loop, self._send_parts, file, key, upload, there)
        self._call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    async def _send_parts(self, file: Path, key: str, upload: str, there: dict[int, Any]) -> list[dict[str, Any]]:
        """All parts, some at a time; no thread of ours is joined when the process ends in the middle of it."""
        step = self._size_of_parts(file.stat().st_size)
        limit, bucket = asyncio.Semaphore(STREAMS), self.system.split_path(self.root)[0]

        async def send(number: int) -> dict[str, Any]:
            async with limit:
                part, checksum, known = await asyncio.to_thread(_part, file, number, step, there.get(number))
                sent = known or await self.system._call_s3(
                    "upload_part", Bucket=bucket, Key=key, UploadId=upload, PartNumber=number, Body=part,
                    ChecksumAlgorithm="SHA256", **checksum,
                )  # fmt: skip
            return {"PartNumber": number, "ETag": sent["ETag"], **checksum}

        tasks = [asyncio.create_task(send(number + 1)) for number in range(math.ceil(file.stat().st_size / step))]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _begin(self, name: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """An upload in parts, and those that are there: of one that was cut off, or none."""
        key = self._key(name)
        for found in self._uploads(name):
            if found["Key"] == key and found.get("ChecksumAlgorithm") == "SHA256":
                return found["UploadId"], {part["PartNumber"]: part for part in self._sent(key, found["UploadId"])}
        begun = self._call("create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256")
        return begun["UploadId"], {}

    def _sent(self, key: str, upload: str) -> Iterator[dict[str, Any]]:
        marker = 0
        while True:
            page = self._call("list_parts", Key=key, UploadId=upload, PartNumberMarker=marker)
            yield from page.get("Parts", [])
            if not page.get("IsTruncated"):
                return
            marker = page["NextPartNumberMarker"]


def _proof(name: str) -> str:
    return f"{PROOFS}/{name}.json"


def _checksum(content: bytes) -> dict[str, str]:
    return {"ChecksumSHA256": b64encode(hashlib.sha256(content).digest()).decode()}


def _part(file: Path, number: int, step: int, there: dict[str, Any] | None) -> tuple[bytes, dict[str, str], Any]:
    """A part, its checksum, and `there` if that is it: by its SHA-256, or its MD5 where the store lists no other."""
    with file.open("rb") as stream:
        stream.seek((number - 1) * step)
        part = stream.read(step)
    checksum = _checksum(part)
    if there is None:
        return part, checksum, None
    said, md5 = there.get("ChecksumSHA256"), hashlib.md5(part, usedforsecurity=False).hexdigest()
    same = said == checksum["ChecksumSHA256"] if said else there["ETag"].strip('"') == md5
    return part, checksum, there if same else None
