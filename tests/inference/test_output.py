"""Finished shards as one file: in input order, each row with its own fields, whole or not there."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest

from tests.generating import largest_file
from velocity.errors import JobError
from velocity.inference import output
from velocity.inference.ledger import Ledger
from velocity.inference.output import OURS, Places, completed, write_jsonl, write_parquet


class Rows:
    """Prompts that know their rows, and their ids: `r0`, `r1`, …"""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def id(self, index: int) -> str:
        return f"r{index}"

    def row(self, index: int) -> dict[str, Any]:
        return dict(self.rows[index])


def line(row: int, **more: Any) -> dict[str, Any]:
    """A shard's line: the completion tells its row."""
    told = {"row": row, "completion": f"of {row} 日\n", "finish_reason": "stop"}
    return {**told, "prompt_tokens": row, "completion_tokens": 2, **more}


def finished(folder: Path, count: int, samples: int = 1, **more: Any) -> Ledger:
    """A ledger of so many rows, the last ones longest, all of whose shards are written."""
    ledger = Ledger(folder / "shards", list(range(count)))
    for shard, rows in enumerate(ledger.shards):
        numbers = [(int(row), sample) for row in sorted(rows) for sample in range(samples)]
        ledger.write(shard, [line(row, **({"sample": s} if samples > 1 else {}), **more) for row, s in numbers])
    return ledger


def lines_of(rows: Sequence[dict[str, Any]], ledger: Ledger) -> list[dict[str, Any]]:
    prompts: Any = Rows(rows)
    return list(completed(prompts, ledger))


def test_every_row_stands_once_in_input_order_with_its_own_fields_and_id(tmp_path: Path):
    rows = [{"number": i, "nested": {"a": [i, None]}} for i in range(50)]
    ledger = finished(tmp_path, 50)
    assert ledger.shards[0][0] == 49, "shards hold the longest rows first"
    assert lines_of(rows, ledger) == [
        {"number": i, "nested": {"a": [i, None]}, "id": f"r{i}", "completion": f"of {i} 日\n", "finish_reason": "stop",
         "prompt_tokens": i, "completion_tokens": 2}
        for i in range(50)
    ]  # fmt: skip


def test_several_samples_of_a_row_stand_one_after_the_other(tmp_path: Path):
    found = lines_of([{"number": i} for i in range(40)], finished(tmp_path, 40, samples=3))
    assert [(one["number"], one["sample"]) for one in found] == [(i, sample) for i in range(40) for sample in range(3)]
    assert found[4]["id"] == "r1"


def test_places_find_a_rows_lines_among_those_of_others(tmp_path: Path):
    places = Places(finished(tmp_path, 40, samples=2))
    for row in (0, 17, 39):
        assert [(one["row"], one["sample"]) for one in places.lines(row)] == [(row, 0), (row, 1)]


def test_a_field_that_has_one_of_our_names_is_kept_under_another(tmp_path: Path):
    row = {name: f"mine: {name}" for name in OURS}
    (found,) = lines_of([row], finished(tmp_path, 1, logprobs=[-0.5]))
    assert {name: found[f"input_{name}"] for name in OURS} == row
    assert (found["id"], found["completion"], found["logprobs"]) == ("r0", "of 0 日\n", [-0.5])
    assert "sample" not in found and "error" not in found, "nothing but the input said so"


def test_no_field_is_lost_where_both_names_are_there(tmp_path: Path):
    """As in the completions of an earlier job that are prompts of this one."""
    row = {"id": "first", "input_id": "second", "completion": "third", "prompt": "Hi"}
    (found,) = lines_of([row], finished(tmp_path, 1))
    assert {"first", "second", "third", "Hi", "r0"} <= set(map(str, found.values()))


def test_fields_that_name_rows_and_shards_are_fields_like_any_other(tmp_path: Path):
    rows: list[dict[str, Any]] = [{"row": 7, "shard": "x", "failed": 3}, {"row": 0, "shard": 0, "failed": None}]
    assert [{name: one[name] for name in rows[0]} for one in lines_of(rows, finished(tmp_path, 2))] == rows


def test_lines_of_json_read_back_with_every_character(tmp_path: Path):
    lines: list[dict[str, Any]] = [
        {"text": "日本 🙂 \u2028 \n \t \0", "value": None, "deep": [{"a": 1.5}]},
        {"text": ""},
    ]
    write_jsonl(tmp_path / "out.jsonl", lines)
    text = (tmp_path / "out.jsonl").read_text("utf-8")
    assert "日本 🙂" in text, "and not escaped"
    assert [json.loads(one) for one in text.removesuffix("\n").split("\n")] == lines
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def as_table(path: Path, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    write_parquet(path, iter(lines), iter(lines))
    rows: list[dict[str, Any]] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def test_a_table_reads_back_as_the_lines(tmp_path: Path):
    lines = [
        {"number": i, "share": i / 2, "text": f"日 {i}", "good": i % 2 == 0, "tags": ["a"] * i, "deep": {"a": i},
         "logprobs": [-0.5, -float(i)]}
        for i in range(5)
    ]  # fmt: skip
    assert as_table(tmp_path / "out.parquet", lines) == lines
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("block", [1, 2, 100])
def test_a_table_has_the_fields_of_all_rows_and_none_where_a_row_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    monkeypatch.setattr(output, "BLOCK_ROWS", block)
    lines: list[dict[str, Any]] = [
        {"a": 1, "error": None},
        {"a": None, "b": "x"},
        {"a": 3, "error": "out of memory"},
        {"c": [1]},
    ]
    names = ("a", "b", "c", "error")
    expected = [{name: one.get(name) for name in names} for one in lines]
    found = as_table(tmp_path / "out.parquet", lines)
    assert [{name: one[name] for name in names} for one in found] == expected


@pytest.mark.parametrize("block", [1, 100])
def test_whole_numbers_and_broken_ones_are_one_column_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
):
    monkeypatch.setattr(output, "BLOCK_ROWS", block)
    found = as_table(tmp_path / "out.parquet", [{"score": 1}, {"score": 2.5}])
    assert [one["score"] for one in found] == [1.0, 2.5]


@pytest.mark.parametrize("block", [1, 100])
@pytest.mark.parametrize("other", ["text", [1], {"a": 1}])
def test_a_field_of_several_types_is_no_table_and_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, other: Any
):
    monkeypatch.setattr(output, "BLOCK_ROWS", block)
    lines = [{"value": 1}, {"value": other}]
    with pytest.raises(JobError, match="of several types.* which no table holds") as caught:
        write_parquet(tmp_path / "out.parquet", iter(lines), iter(lines))
    assert caught.value.problems[0].where == str(tmp_path / "out.parquet")
    assert "format: jsonl" in caught.value.problems[0].fix
    assert list(tmp_path.iterdir()) == []


LARGE = [{"number": i, "text": "".join(chr(0x4E00 + (i * 31 + k * k) % 9000) for k in range(500))} for i in range(300)]


@pytest.mark.parametrize("old", [None, b"an older file"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_write_that_fails_half_way_leaves_what_was_there(tmp_path: Path, kind: str, old: bytes | None):
    path = tmp_path / f"out.{kind}"
    if old is not None:
        path.write_bytes(old)
    with largest_file(64 << 10), pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
        if kind == "jsonl":
            write_jsonl(path, LARGE)
        else:
            write_parquet(path, iter(LARGE), iter(LARGE))
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path), "named, though a write does not say where it failed"
    assert [one.name for one in tmp_path.iterdir()] == ([] if old is None else [path.name])
    assert old is None or path.read_bytes() == old


def test_a_merge_that_fails_half_way_can_be_done_again(tmp_path: Path):
    ledger, prompts = finished(tmp_path, 300), Rows(LARGE)
    rows: Any = prompts
    with largest_file(64 << 10), pytest.raises(OSError):
        write_jsonl(tmp_path / "out.jsonl", completed(rows, ledger))
    write_jsonl(tmp_path / "out.jsonl", completed(rows, ledger))
    text = (tmp_path / "out.jsonl").read_text("utf-8")
    assert [json.loads(one)["number"] for one in text.splitlines()] == list(range(300))
