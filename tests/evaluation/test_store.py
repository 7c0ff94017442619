"""Items on disk are the items that were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from velocity.data.answers import Answer
from velocity.evaluation.store import EvalStore, Item, StoreBuilder


def item(prompt: list[int], *options: list[int], row: str = "{}") -> Item:
    made = [Answer(np.array(ids, dtype=np.int32), np.array([1] * len(ids), dtype=np.uint8)) for ids in options]
    return Item(prompt, made, [3] * len(options), {"answer": 0}, row)


def test_what_is_read_is_what_was_written_and_a_rows_name_follows_from_its_content(tmp_path: Path):
    builder = StoreBuilder(tmp_path)
    builder.write([item([1, 2, 3, 4, 5], [6], [7, 8], row='{"a": 1}'), item([1, 2, 3, 4, 9], [6], row='{"a": 2}')])
    builder.write([item([1, 2, 3, 4, 9], [6], row='{"a": 1}')])
    builder.close({"kind": "choices"})
    store = EvalStore(tmp_path)
    assert len(store) == 3
    assert store.lengths.tolist() == [8, 6, 6]
    first = store[0]
    assert (first.prompt, [option.ids.tolist() for option in first.options]) == ([1, 2, 3, 4, 5], [[6], [7, 8]])
    assert (first.bytes, first.told, store.row(0)) == ([3, 3], {"answer": 0}, {"a": 1})
    assert store.shared == [1, 2, 3, 4]
    assert store.id(2) == f"{store.id(0)}-1"
    assert store.id(1) != store.id(0)


def test_texts_have_no_shared_beginning(tmp_path: Path):
    builder = StoreBuilder(tmp_path)
    builder.write([item([], [1, 2, 3]), item([], [1, 2, 3])])
    builder.close({"kind": "perplexity"})
    assert EvalStore(tmp_path).shared == []
