"""Every kind of source gives the rows it holds, in order, in bounded chunks; what cannot be read says so."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.making import write_jsonl
from velocity.config.sections import SourceConfig
from velocity.data.sources import CHUNK_BYTES, CHUNK_ROWS, Chunk, File, list_files, read_chunks
from velocity.errors import UserError

ROWS = [{"text": f'row {i}, with a comma, a "quote", a\nline and a 🙂'} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def rows_of(path: str | Path, **settings: Any) -> list[Any]:
    files = list_files(SourceConfig(path=str(path), **settings))
    chunks = list(read_chunks(files))
    return [json.loads(row) if chunk.raw else row for chunk in chunks for row in chunk.rows]


def refused(path: str | Path, **settings: Any) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(path, **settings)
    assert len(str(caught.value).splitlines()) <= 3
    return str(caught.value)


def write_csv(path: Path, delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ["text"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def write_parquet(path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inner.jsonl", LINES)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a.jsonl": lambda path: path.write_bytes(LINES),
    "a.ndjson": lambda path: path.write_bytes(LINES),
    "a.JSONL": lambda path: path.write_bytes(LINES),
    "a.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "a.csv": write_csv,
    "a.tsv": lambda path: write_csv(path, "\t"),
    "a.parquet": write_parquet,
    "a.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "a.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "a.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "a.jsonl.zip": write_zip,
    "a [1].jsonl": lambda path: path.write_bytes(LINES),
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_gives_its_rows_in_order(tmp_path: Path, name: str):
    WRITERS[name](tmp_path / name)
    assert rows_of(tmp_path / name) == ROWS


def test_a_zstandard_file_gives_its_rows(tmp_path: Path):
    from backports import zstd

    (tmp_path / "a.jsonl.zst").write_bytes(zstd.compress(LINES))
    assert rows_of(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.markdown"])
def test_a_text_file_is_one_row(tmp_path: Path, name: str):
    (tmp_path / name).write_text("# Title\n\nA line.\n", "utf-8")
    assert rows_of(tmp_path / name) == [{"text": "# Title\n\nA line.\n"}]


def test_a_json_file_may_hold_one_record(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"text": "x"}')
    assert rows_of(tmp_path / "a.json") == [{"text": "x"}]


def test_a_csv_file_may_begin_with_a_byte_order_mark_and_hold_long_cells(tmp_path: Path):
    long = "x" * 200_000  # Python's own limit is 131,072 characters
    (tmp_path / "a.csv").write_text(f"text,id\n{long},1\n", "utf-8-sig")
    assert rows_of(tmp_path / "a.csv") == [{"text": long, "id": "1"}]


def test_a_folder_gives_its_files_in_the_order_of_their_paths(tmp_path: Path):
    for name in ["b.jsonl", "a.txt", "sub/c.jsonl", "sub/deep/a.json", ".hidden.jsonl", ".git/x.jsonl", "a.png"]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}))
    found = [row["text"] for row in rows_of(tmp_path)]
    assert found == ['{"text": "a.txt"}', "b.jsonl", "sub/c.jsonl", "sub/deep/a.json"]


def test_a_glob_gives_the_files_that_match(tmp_path: Path):
    for name in ["a.jsonl", "b.jsonl", "c.txt", "sub/d.jsonl"]:
        write_jsonl(tmp_path / name, [{"text": name}])
    assert [row["text"] for row in rows_of(tmp_path / "*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row["text"] for row in rows_of(tmp_path / "**" / "*.jsonl")] == ["a.jsonl", "b.jsonl", "sub/d.jsonl"]
    assert [row["text"] for row in rows_of(tmp_path / "[bx].jsonl")] == ["b.jsonl"]


def test_a_path_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert rows_of("~/a.jsonl") == rows_of("~/*.jsonl") == ROWS


def test_a_url_of_any_file_system_is_read():
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/b.jsonl", LINES)
    memory.pipe("/bucket/a.jsonl.gz", gzip.compress(LINES))
    assert rows_of("memory://bucket/b.jsonl") == ROWS
    assert rows_of("memory://bucket/*.jsonl*") == rows_of("memory://bucket") == ROWS + ROWS
    assert [file.path for file in list_files(SourceConfig(path="memory://bucket"))] == [
        "memory:///bucket/a.jsonl.gz",
        "memory:///bucket/b.jsonl",
    ]


def test_a_dataset_saved_to_disk_gives_its_rows(tmp_path: Path):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "one"))
    several = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:2])}
    datasets.DatasetDict(several).save_to_disk(str(tmp_path / "several"))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "several") == ROWS
    assert rows_of(tmp_path / "several", split="test") == ROWS[:2]
    assert "no split 'dev'" in refused(tmp_path / "several", split="dev")
    assert "split: one of train, test" in refused(tmp_path / "several", split="dev")


@pytest.mark.parametrize("path", ["absent.jsonl", "./absent", "/absent/data", "~/absent", "a/b/c"])
def test_a_path_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    assert refused(path).startswith(f"no such file or folder: {path}\n")


@pytest.mark.parametrize("path", ["*.jsonl", ".", "memory://nowhere/a.jsonl", "memory://nowhere/*.csv"])
def test_a_place_without_a_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").touch()
    assert refused(path).startswith(f"nothing to read in {path}\n")


def test_a_file_of_an_unknown_kind_is_refused_with_the_kinds_that_are_known(tmp_path: Path):
    (tmp_path / "a.xlsx").touch()
    assert f"do not know how to read {tmp_path}/a.xlsx" in refused(tmp_path / "a.xlsx")
    assert ".jsonl" in refused(tmp_path / "a.xlsx")
    (tmp_path / "b.gz").touch()
    assert f"do not know how to read {tmp_path}/b.gz" in refused(tmp_path / "b.gz")


def test_a_file_system_that_does_not_exist_is_named():
    assert "cannot list nope://bucket/a.jsonl" in refused("nope://bucket/a.jsonl")


def test_a_name_like_a_hubs_is_a_dataset_of_the_hub():
    assert list_files(SourceConfig(path="someone/chats", split="dev")) == [File("someone/chats", "hub", "dev")]
    found = list_files(SourceConfig(path="some-one/Chats-2.5", subset="clean"))
    assert found == [File("some-one/Chats-2.5", "hub", "train", "clean")]


BROKEN = {
    "a.jsonl.gz": gzip.compress(LINES)[:-9],
    "b.jsonl.gz": gzip.compress(LINES)[:20] + b"\xff" * 40,
    "a.jsonl.bz2": bz2.compress(LINES)[:-9],
    "a.jsonl.xz": lzma.compress(LINES)[:30] + b"\xff" * 40,
    "a.jsonl.zip": b"no archive",
    "a.json": b'[{"text": "x"},',
    "a.parquet": b"PAR1 torn",
    "a.txt": b"caf\xe9",
    "a.csv": b"text\ncaf\xe9\n",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_is_torn_or_no_utf_8_is_named(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(BROKEN[name])
    assert refused(tmp_path / name).startswith("cannot read the file: ")
    assert f"where: {tmp_path}/{name}" in refused(tmp_path / name)


def test_lines_keep_their_numbers_over_chunks_and_blank_lines(tmp_path: Path):
    count = 2 * CHUNK_ROWS + 3
    (tmp_path / "a.jsonl").write_text("".join(f"{i}\n" if i % 7 else "\n" for i in range(1, count + 1)))
    chunks = list(read_chunks(list_files(SourceConfig(path=str(tmp_path)))))
    assert [chunk.first for chunk in chunks] == [1, 1 + CHUNK_ROWS, 1 + 2 * CHUNK_ROWS]
    numbered = [(chunk.first + i, row) for chunk in chunks for i, row in enumerate(chunk.rows) if row.strip()]
    assert numbered == [(i, b"%d\n" % i) for i in range(1, count + 1) if i % 7]


def test_rows_of_a_csv_file_have_the_number_of_their_line(tmp_path: Path):
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"{i}\n" for i in range(2, CHUNK_ROWS + 9)))
    for chunk in read_chunks(list_files(SourceConfig(path=str(tmp_path)))):
        assert [int(row["text"]) for row in chunk.rows] == list(range(chunk.first, chunk.first + len(chunk.rows)))


def test_rows_of_several_files_carry_their_file(tmp_path: Path):
    files = list_files(SourceConfig(path=str(write_jsonl(tmp_path / "b.jsonl", ROWS).parent)))
    write_jsonl(tmp_path / "a.jsonl", ROWS[:1])
    files = [File(str(tmp_path / "a.jsonl"), "jsonl"), *files]
    assert [(chunk.file, len(chunk.rows)) for chunk in read_chunks(files)] == [(0, 1), (1, 5)]


def bytes_of(chunk: Chunk) -> int:
    return sum(map(len, chunk.rows))


def test_a_chunk_is_bounded_in_rows_and_in_bytes(tmp_path: Path):
    line = b'"' + b"x" * (CHUNK_BYTES // 4) + b'"\n'
    (tmp_path / "a.jsonl").write_bytes(line * 9 + b"1\n" * (CHUNK_ROWS + 1))
    chunks = list(read_chunks(list_files(SourceConfig(path=str(tmp_path)))))
    assert max(map(bytes_of, chunks)) < CHUNK_BYTES + len(line)
    assert max(len(chunk.rows) for chunk in chunks) == CHUNK_ROWS
    assert sum(len(chunk.rows) for chunk in chunks) == 9 + CHUNK_ROWS + 1


def test_a_text_file_may_begin_with_a_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A line.", "utf-8-sig")
    assert rows_of(tmp_path / "a.txt") == [{"text": "A line."}]
