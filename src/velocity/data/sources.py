"""From a path to raw rows: files, globs, folders, URLs, Hugging Face datasets. It knows no format of a record.

Memory does not grow with the corpus: rows come in chunks. A JSON array or a text file is held whole, one at a time.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from velocity.config.sections import PlaceConfig
from velocity.errors import UserError

CHUNK_ROWS = 512
CHUNK_BYTES = 1 << 20
LARGEST_CELL = 1 << 30  # of a CSV file; Python's own limit is 128 KiB, less than a long text
KINDS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv",
         ".parquet": "parquet", ".txt": "text", ".md": "text", ".markdown": "text"}  # fmt: skip
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip"}


@dataclass(frozen=True)
class File:
    """One readable thing: a file by its URL or path, or a Hugging Face dataset by its name."""

    path: str
    kind: str
    split: str = ""
    subset: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Some rows of one file. `rows` are lines of JSON still to be parsed where `raw`, else values."""

    file: int
    first: int  # line or row number of the first one, from 1
    rows: list[Any]
    raw: bool


def list_files(source: PlaceConfig) -> list[File]:
    """The files of a source, sorted by path; UserError where there is none."""
    path = source.path
    if "://" in path or Path(path).expanduser().exists() or any(letter in path for letter in "*?["):
        return _list_path(source)
    if path.count("/") == 1 and not path.startswith((".", "/", "~")) and not _kind(path):
        return [File(path, "hub", source.split, source.subset)]
    raise UserError(f"no such file or folder: {path}", "data", "check the path; globs and URLs are possible, too")


def _list_path(source: PlaceConfig) -> list[File]:
    path = source.path if "://" in source.path else str(Path(source.path).expanduser())
    try:
        system, inner = fsspec.core.url_to_fs(path)
        if system.isdir(inner):
            if system.exists(f"{inner}/state.json") or system.exists(f"{inner}/dataset_dict.json"):
                return [File(path, "saved", source.split)]
            names = [name for name in system.find(inner) if _kind(name) and "/." not in name.removeprefix(inner)]
        elif system.isfile(inner):
            names = [inner]
        else:
            names = [name for name in system.glob(inner) if system.isfile(name)]
    except Exception as error:  # every file system has errors of its own
        raise UserError(f"cannot list {path}: {error}", "data", "check the address and your credentials") from None
    unknown = [name for name in names if not _kind(name)]
    if unknown:
        raise UserError(f"do not know how to read {unknown[0]}", "data", f"known endings: {', '.join(KINDS)}")
    if not names:
        raise UserError(f"nothing to read in {path}", "data", f"known endings: {', '.join(KINDS)}")
    return [File(system.unstrip_protocol(name) if "://" in path else name, _kind(name)) for name in sorted(names)]


def _kind(name: str) -> str:
    path = Path(name)
    if path.suffix in COMPRESSED:
        path = path.with_suffix("")
    return KINDS.get(path.suffix.lower(), "")


def read_chunks(files: Iterable[File]) -> Iterator[Chunk]:
    """All rows of all files in order, in chunks of bounded size; UserError where a file cannot be read."""
    for number, file in enumerate(files):
        try:
            yield from READERS[file.kind](file, number)
        except UserError:
            raise
        except Exception as error:  # every decompressor has errors of its own
            what = f"cannot read the file: {str(error) or type(error).__name__}"
            raise UserError(what, file.path, "is it whole, and in UTF-8?") from None


def _open(file: File) -> Any:
    return fsspec.open(file.path, "rb", compression="infer").open()


def _jsonl(file: File, number: int) -> Iterator[Chunk]:
    with _open(file) as stream:
        rows: list[bytes] = []
        first = size = 0
        for line_number, line in enumerate(stream, 1):
            if not rows:
                first = line_number
            rows.append(line)
            size += len(line)
            if len(rows) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                yield Chunk(number, first, rows, raw=True)
                rows, size = [], 0
        if rows:
            yield Chunk(number, first, rows, raw=True)


def _chunked(rows: Iterable[Any], number: int, first: int = 1) -> Iterator[Chunk]:
    iterator = iter(rows)
    while block := list(itertools.islice(iterator, CHUNK_ROWS)):
        yield Chunk(number, first, block, raw=False)
        first += len(block)


def _json(file: File, number: int) -> Iterator[Chunk]:
    with _open(file) as stream:
        data = json.load(stream)
    yield from _chunked(data if isinstance(data, list) else [data], number)


def _csv(file: File, number: int) -> Iterator[Chunk]:
    with _open(file) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        delimiter = "\t" if ".tsv" in file.path else ","
        csv.field_size_limit(LARGEST_CELL)
        yield from _chunked(csv.DictReader(text, delimiter=delimiter), number, first=2)  # line 1 names the fields


def _parquet(file: File, number: int) -> Iterator[Chunk]:
    import pyarrow.parquet

    first = 1
    with _open(file) as stream:
        for block in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=CHUNK_ROWS):
            yield Chunk(number, first, block.to_pylist(), raw=False)
            first += block.num_rows


def _text(file: File, number: int) -> Iterator[Chunk]:
    with _open(file) as stream:
        yield Chunk(number, 1, [{"text": stream.read().decode("utf-8-sig")}], raw=False)


def _saved(file: File, number: int) -> Iterator[Chunk]:
    import datasets

    data = datasets.load_from_disk(file.path)
    yield from _chunked(_split(data, file) if isinstance(data, dict) else data, number)


def _hub(file: File, number: int) -> Iterator[Chunk]:
    import datasets

    try:
        data = datasets.load_dataset(file.path, file.subset, split=file.split, streaming=True)
    except Exception as error:  # the hub's client has errors of its own, and its network library others
        raise no_dataset(file.path, error) from None
    yield from _chunked(data, number)


def no_dataset(name: str, error: Exception) -> UserError:
    """What to say where a path that looks like a dataset of the hub is none."""
    what = f"'{name}' is no file here, and as a dataset of the hub it cannot be read: {type(error).__name__}"
    return UserError(what, "data", "check the path or the dataset's name")


def _split(data: Any, file: File) -> Any:
    if file.split not in data:
        raise UserError(f"no split '{file.split}'", file.path, f"split: one of {', '.join(data)}")
    return data[file.split]


READERS = {
    "jsonl": _jsonl,
    "json": _json,
    "csv": _csv,
    "parquet": _parquet,
    "text": _text,
    "saved": _saved,
    "hub": _hub,
}
