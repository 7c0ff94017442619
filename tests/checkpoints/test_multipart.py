"""Parts of a large object that are in S3 are not sent again, and none is left behind."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.checkpoints.mirrored import Server
from velocity.checkpoints.commit import entry_of
from velocity.checkpoints.store import S3Store, open_store

SMALLEST_PART = 5 << 20  # that S3 takes


def test_parts_that_are_there_are_not_sent_again(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(S3Store, "part_bytes", SMALLEST_PART)
    store = open_store(s3.bucket())
    assert isinstance(store, S3Store)
    file = tmp_path / "file"
    file.write_bytes(Random(0).randbytes(3 * SMALLEST_PART))
    upload, there = store._parts.begin(store._key("a/file"))
    assert there == {}
    key = store._key("a/file")
    part = file.read_bytes()[SMALLEST_PART : 2 * SMALLEST_PART]
    store._parts.call("upload_part", Key=key, UploadId=upload, PartNumber=2, Body=part)
    store._parts.call("upload_part", Key=key, UploadId=upload, PartNumber=3, Body=part)  # another one than it is to be
    s3.requests.clear()
    assert store.put(file, "a/file", entry_of(file))
    assert sorted(line.split("partNumber=")[1][0] for line in s3.requests if "partNumber=" in line) == ["1", "3"]
    store.fetch("a/file", tmp_path / "back", entry_of(file))


def test_parts_of_an_upload_that_did_not_end_go_with_the_folder(s3: Server):
    store = open_store(s3.bucket())
    assert isinstance(store, S3Store)
    for name in ("a/file", "b/file"):
        store._parts.begin(store._key(name))
    store.remove_folder("a")
    assert [upload["Key"] for upload in store._parts._uploads("")] == ["runs/sft/b/file"]
