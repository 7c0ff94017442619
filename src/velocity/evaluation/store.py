"""The rows of an evaluation set as token ids, on disk beside what they say. It knows no model and no rank.

A store is written to a temporary folder and renamed when whole, so a folder of the right name is always whole.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from velocity.data.answers import Answer
from velocity.data.prompts import common_start, name_of
from velocity.data.store import ArrowRows
from velocity.data.turns import Ids

SCHEMA = pa.schema({
    "id": pa.string(), "prompt": pa.list_(pa.int32()), "options": pa.list_(pa.list_(pa.int32())),
    "trained": pa.list_(pa.list_(pa.uint8())), "bytes": pa.list_(pa.int64()), "told": pa.string(), "row": pa.string(),
})  # fmt: skip
ROWS = "rows.arrow"
SHARED_AT_LEAST = 4  # tokens that all prompts begin with, for which a forward of their own is worth it


@dataclass(frozen=True)
class Item:
    """A row: the tokens of its prompt, and what of the model's is scored behind it.

    Of a set of kind perplexity the prompt is empty, and the options are the windows of one text; of kind answers there
    is no option. `bytes` counts those of the text of each option. `told` is what the row's result says of it.
    """

    prompt: Sequence[int]
    options: Sequence[Answer]
    bytes: Sequence[int]
    told: Mapping[str, Any]
    row: str = "{}"  # as it was read, as JSON

    @property
    def length(self) -> int:
        """Tokens that a forward takes for it."""
        return len(self.prompt) + sum(len(option.ids) for option in self.options)


class EvalStore:
    """Random access to the items of a set; memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
        self.lengths: Ids = np.load(folder / "lengths.npy", mmap_mode="r")
        self._rows = ArrowRows(folder / ROWS)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shared(self) -> list[int]:
        """Token ids that all prompts begin with; empty where they are few."""
        ids: list[int] = self.stats["shared"]
        return ids

    def id(self, index: int) -> str:
        """The row's stable name, which follows from its content."""
        return str(self._value("id", index))

    def row(self, index: int) -> dict[str, Any]:
        """The row as it was read."""
        row: dict[str, Any] = json.loads(self._value("row", index))
        return row

    def __getitem__(self, index: int) -> Item:
        options = [
            Answer(np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=np.uint8))
            for ids, trained in zip(self._value("options", index), self._value("trained", index), strict=True)
        ]
        told = json.loads(self._value("told", index))
        return Item(self._value("prompt", index), options, self._value("bytes", index), told)

    def _value(self, column: str, index: int) -> Any:
        batch, row = self._rows.find(index)
        return batch.column(column)[row].as_py()


@dataclass
class StoreBuilder:
    """Writes a store, a batch of items at a time."""

    folder: Path
    lengths: list[int] = field(default_factory=list)
    shared: list[int] | None = None
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._sink = pa.OSFile(str(self.folder / ROWS), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def write(self, items: Sequence[Item]) -> None:
        """The items stand behind those that are written."""
        if not items:
            return
        for item in items:
            self.lengths.append(item.length)
            prompt = list(item.prompt)
            self.shared = common_start(prompt if self.shared is None else self.shared, prompt)
        columns = [
            [name_of(item.row, self.seen) for item in items],
            [list(item.prompt) for item in items],
            [[option.ids.tolist() for option in item.options] for item in items],
            [[option.trained.tolist() for option in item.options] for item in items],
            [list(item.bytes) for item in items],
            [json.dumps(item.told, ensure_ascii=False) for item in items],
            [item.row for item in items],
        ]
        arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, SCHEMA, strict=True)]
        self._writer.write_batch(pa.record_batch(arrays, schema=SCHEMA))

    def close(self, stats: Mapping[str, Any]) -> None:
        """The store is whole."""
        self._writer.close()
        self._sink.close()
        np.save(self.folder / "lengths.npy", np.array(self.lengths, dtype=np.int32))
        shared = self.shared or []
        told = {**stats, "rows": len(self.lengths), "shared": shared if len(shared) >= SHARED_AT_LEAST else []}
        (self.folder / "stats.json").write_text(json.dumps(told, indent=1))
