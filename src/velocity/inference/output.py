"""Finished shards become one file in input order: completions.jsonl or completions.parquet. It knows no engine."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet

from velocity.data.prompts import PromptStore, to_json
from velocity.errors import JobError
from velocity.files import whole_file
from velocity.inference.ledger import Ledger

OURS = ("id", "sample", "completion", "finish_reason", "prompt_tokens", "completion_tokens", "logprobs", "error")
BLOCK_ROWS = 4096


class Places:
    """Where each row's lines lie among the shards: memory holds two numbers a row, not the completions."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        rows = sum(map(len, ledger.shards))
        self._shards, self._bytes = np.zeros(rows, dtype=np.int32), np.full(rows, -1, dtype=np.int64)
        for shard in range(len(ledger.shards)):
            place = 0
            with ledger.path(shard).open("rb") as stream:
                for line in stream:
                    row = json.loads(line).get("row")
                    if row is not None and self._bytes[row] < 0:
                        self._shards[row], self._bytes[row] = shard, place
                    place += len(line)

    def lines(self, row: int) -> Iterator[dict[str, Any]]:
        """A row's lines, one a sample."""
        with self.ledger.path(int(self._shards[row])).open("rb") as stream:
            stream.seek(int(self._bytes[row]))
            for line in stream:
                value = json.loads(line)
                if value.get("row") != row:
                    return
                yield value


def completed(prompts: PromptStore, ledger: Ledger) -> Iterator[dict[str, Any]]:
    """Every row's fields with its completions, in input order.

    An input field that has one of our names is kept as `input_NAME`.
    """
    places = Places(ledger)
    for row in range(len(prompts)):
        fields = _renamed(prompts.row(row))
        for line in places.lines(row):
            yield {**fields, "id": prompts.id(row), **{name: line[name] for name in OURS if name in line}}


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {}
    for name, value in fields.items():
        free = name
        while free in OURS or (free != name and free in fields):  # an earlier job's output is a source as well
            free = f"input_{free}"
        renamed[free] = value
    return renamed


def write_jsonl(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """The file holds the lines, whole or not at all."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(to_json(line) + "\n" for line in lines)


def write_parquet(path: Path, read: Iterable[Mapping[str, Any]], again: Iterable[Mapping[str, Any]]) -> None:
    """The same as a table; `read` and `again` are the same lines twice: first for their types, then for themselves."""
    try:
        with whole_file(path) as temporary:
            schema = pa.unify_schemas([_schema(block) for block in _blocks(read)], promote_options="permissive")
            with pa.parquet.ParquetWriter(temporary, schema) as writer:
                for block in _blocks(again):
                    writer.write_table(pa.Table.from_pylist(block, schema=schema))
    except (pa.ArrowException, OverflowError) as error:
        why = str(error).splitlines()[0]
        what = f"the rows' fields are of several types, or too large for one, which no table holds: {why}"
        raise JobError(what, str(path), "begin anew with generation.format: jsonl and --fresh") from None


def _schema(block: list[dict[str, Any]]) -> pa.Schema:
    """Of all fields that any row of the block has; pyarrow by itself looks at the first row."""
    names = dict.fromkeys(name for line in block for name in line)
    return pa.Table.from_pydict({name: [line.get(name) for line in block] for name in names}).schema


def _blocks(lines: Iterable[Mapping[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    iterator = iter(lines)
    while block := list(itertools.islice(iterator, BLOCK_ROWS)):
        yield [dict(line) for line in block]
