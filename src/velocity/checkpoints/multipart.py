"""A large object goes to S3 in parts, of which those of a process that was killed are taken up. It knows no store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.asyn

MOST_PARTS = 10_000  # of an object; each takes from 5 MiB to 5 GiB
STREAMS = 4  # parts on their way at a time, each of them in memory


class Parts:
    """Objects of one bucket that go in parts of at least `part_bytes`; `system` is s3fs's file system."""

    def __init__(self, system: Any, bucket: str, part_bytes: int) -> None:
        self.system, self.bucket, self.part_bytes = system, bucket, part_bytes

    def call(self, method: str, **arguments: Any) -> Any:
        """The answer of S3's interface."""
        return self.system.call_s3(method, Bucket=self.bucket, **arguments)

    def send(self, file: Path, key: str) -> None:
        """The object is the file; S3 has checked each part's SHA-256."""
        upload, there = self.begin(key)
        parts = fsspec.asyn.sync(self.system.loop, self._send, file, key, upload, there)
        self.call("complete_multipart_upload", Key=key, UploadId=upload, MultipartUpload={"Parts": parts})

    def checksum_of(self, file: Path) -> str:
        """What S3 says of the object that the file is: the hash of its parts' hashes."""
        digests = (hashlib.sha256(part).digest() for part in self._of(file))
        return checksum(hashlib.sha256(b"".join(digests)).digest())

    def abort(self, begin: str) -> None:
        """No upload is left that did not end, of keys that begin so."""
        for upload in self._uploads(begin):
            self.call("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])

    def begin(self, key: str) -> tuple[str, dict[int, dict[str, Any]]]:
        """An upload, and the parts of it that are there: of one that was cut off, or none."""
        for found in self._uploads(key):
            if found["Key"] == key and found.get("ChecksumAlgorithm") == "SHA256":
                return found["UploadId"], {part["PartNumber"]: part for part in self._sent(key, found["UploadId"])}
        begun = self.call("create_multipart_upload", Key=key, ChecksumAlgorithm="SHA256")
        return begun["UploadId"], {}

    def _uploads(self, begin: str) -> list[dict[str, Any]]:
        with contextlib.suppress(PermissionError, FileNotFoundError):
            return list(self.call("list_multipart_uploads", Prefix=begin).get("Uploads", []))
        return []

    def _sent(self, key: str, upload: str) -> Iterator[dict[str, Any]]:
        marker = 0
        while True:
            page = self.call("list_parts", Key=key, UploadId=upload, PartNumberMarker=marker)
            yield from page.get("Parts", [])
            if not page.get("IsTruncated"):
                return
            marker = page["NextPartNumberMarker"]

    def _size(self, size: int) -> int:
        return max(self.part_bytes, math.ceil(size / MOST_PARTS))

    def _of(self, file: Path) -> Iterator[bytes]:
        size = self._size(file.stat().st_size)
        with file.open("rb") as stream:
            while part := stream.read(size):
                yield part

    async def _send(self, file: Path, key: str, upload: str, there: dict[int, Any]) -> list[dict[str, Any]]:
        """All parts, some at a time; no thread of ours is joined when the process ends in the middle of it."""
        step, limit = self._size(file.stat().st_size), asyncio.Semaphore(STREAMS)

        async def send(number: int) -> dict[str, Any]:
            async with limit:
                part, sums, known = await asyncio.to_thread(_part, file, number, step, there.get(number))
                sent = known or await self.system._call_s3(
                    "upload_part", Bucket=self.bucket, Key=key, UploadId=upload, PartNumber=number, Body=part,
                    ChecksumAlgorithm="SHA256", **sums,
                )  # fmt: skip
            return {"PartNumber": number, "ETag": sent["ETag"], **sums}

        tasks = [asyncio.create_task(send(number + 1)) for number in range(math.ceil(file.stat().st_size / step))]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


def checksum(digest: bytes) -> str:
    """A SHA-256 as S3 writes it."""
    return b64encode(digest).decode()


def checksums(content: bytes) -> dict[str, str]:
    """What a request says of the content that it brings."""
    return {"ChecksumSHA256": checksum(hashlib.sha256(content).digest())}


def _part(file: Path, number: int, step: int, there: dict[str, Any] | None) -> tuple[bytes, dict[str, str], Any]:
    """A part, its checksum, and `there` if that is it: by its SHA-256, or its MD5 where the store lists no other."""
    with file.open("rb") as stream:
        stream.seek((number - 1) * step)
        part = stream.read(step)
    sums = checksums(part)
    if there is None:
        return part, sums, None
    said, md5 = there.get("ChecksumSHA256"), hashlib.md5(part, usedforsecurity=False).hexdigest()
    same = said == sums["ChecksumSHA256"] if said else there["ETag"].strip('"') == md5
    return part, sums, there if same else None
