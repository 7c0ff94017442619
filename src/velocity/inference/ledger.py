"""Which rows belong together, and which of them are done: a file a shard, whole or not there. It knows no model.

Shards follow from the prompts alone, so any number of ranks, and any engine, go on where others were killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from velocity.files import whole_file

SMALLEST, LARGEST, SHARDS = 16, 512, 256
TAIL_BYTES = 4096  # hold a shard's last line


def order_of(lengths: Sequence[int] | NDArray[np.int32]) -> NDArray[np.int64]:
    """Row numbers, longest prompt first: an out-of-memory error comes at once, and rows of a batch are alike."""
    order: NDArray[np.int64] = np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
    return order


def shard_rows(rows: int) -> int:
    """Rows of a shard: as few as a kill may cost, as many as keep the number of files small."""
    return int(np.clip(-(-rows // SHARDS), SMALLEST, LARGEST))


class Ledger:
    """The shards of one run."""

    def __init__(
        self,
        folder: Path,
        lengths: Sequence[int] | NDArray[np.int32],
        written: Callable[[Path], None] = lambda file: None,
        prefix: str = "",
    ) -> None:
        """`lengths` are the prompts' in tokens; `written` hears of the file of each shard that is done.

        Several ledgers of one folder differ in the `prefix` of their files.
        """
        self.folder, self.written, self.prefix, size = folder, written, prefix, shard_rows(len(lengths))
        order = order_of(lengths)
        self.shards = [order[start : start + size] for start in range(0, len(order), size)]

    def path(self, shard: int) -> Path:
        """The shard's file."""
        return self.folder / f"{self.prefix}{shard:08}.jsonl"

    def write(self, shard: int, lines: Sequence[Mapping[str, Any]]) -> None:
        """The shard is done: its file appears whole, its last line says what it holds."""
        failed = sum("error" in line for line in lines)
        marker = {"shard": shard, "lines": len(lines), "failed": failed}
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in [*lines, marker])
        with whole_file(self.path(shard)) as temporary:  # what the model said stays as it is, whatever it looks like
            temporary.write_text(text, encoding="utf-8")
        self.written(self.path(shard))

    def state(self, shard: int) -> dict[str, int] | None:
        """What a done shard's last line says; None for one that is not done."""
        path = self.path(shard)
        if not path.is_file():
            return None
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL_BYTES))
            tail = stream.read()
        try:
            marker = json.loads(tail[tail.rstrip(b"\n").rfind(b"\n") + 1 :])
        except ValueError:
            return None
        whole = isinstance(marker, dict) and tail.endswith(b"\n") and marker.get("shard") == shard
        return marker if whole else None

    def unfinished(self) -> list[int]:
        """Shards to do, longest prompts first; one with a failed row is done again."""
        states = {shard: self.state(shard) for shard in range(len(self.shards))}
        return [shard for shard, state in states.items() if state is None or state["failed"]]

    def lines(self, shard: int) -> Iterator[dict[str, Any]]:
        """What was written for a done shard, without its marker."""
        with self.path(shard).open(encoding="utf-8") as stream:
            for line in stream:
                value = json.loads(line)
                if "shard" not in value:
                    yield value
