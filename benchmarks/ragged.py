"""What benchmarks train on: chats of very different lengths, corpora of a given size. It knows no tokenizer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
DEMO = Path("runs/demo")
PAIRS = DEMO / "corpus" / "preferences_train.jsonl"
MODEL, CHATS, TEXTS = DEMO / "base", DEMO / "corpus" / "chats.jsonl", DEMO / "corpus" / "train.jsonl"


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """`count` items at even distances from the first on: the same ones on every machine; all where there are fewer."""
    count = min(count, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def repeated(items: Sequence[Item], count: int) -> Iterator[Item]:
    """`count` items, from the beginning again wherever they end."""
    return itertools.islice(itertools.cycle(items), count)


def up_to(lines: Sequence[str], size_bytes: int) -> Iterator[str]:
    """Lines, from the beginning again wherever they end, until they hold `size_bytes`."""
    written = 0
    for line in itertools.cycle(lines):
        if written >= size_bytes:
            return
        written += len(line.encode())
        yield line


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a JSONL file; SystemExit where the demo has not made it yet."""
    if not path.is_file():
        raise SystemExit(f"no such file: {path}\n  fix: run `make demo` first, or name another file")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_records(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """The file holds the records, one a line; returns how many."""
    lines = [json.dumps(record) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
