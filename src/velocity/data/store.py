"""Tokenised sequences on disk: one Arrow file, memory-mapped, and its counts. It knows no tokenizer.

A store is written to a temporary folder and renamed when whole, so a folder of the right name is always whole.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from velocity.data.encode import Ids, Mask, TokenSequence
from velocity.files import whole_folder

SCHEMA = pa.schema(
    {"ids": pa.list_(pa.int32()), "trained": pa.list_(pa.uint8()), "file": pa.int32(), "line": pa.int64()}
)


@dataclass(frozen=True)
class Block:
    """Some sequences, laid end to end: `ids` and `trained` of all, then length, file and line of each."""

    ids: Ids
    trained: Mask
    lengths: Ids
    files: Ids
    lines: NDArray[np.int64]


class SequenceStore:
    """Random access to the sequences of one source. Opening costs a few system calls, whatever the size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
        self.lengths: Ids = np.load(folder / "lengths.npy", mmap_mode="r")
        reader = pa.ipc.open_file(pa.memory_map(str(folder / "sequences.arrow")))
        self._batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches])

    def __len__(self) -> int:
        return len(self.lengths)

    def _find(self, index: int) -> tuple[pa.RecordBatch, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self._batches[number]
        return batch, index - int(self._ends[number]) + batch.num_rows

    def __getitem__(self, index: int) -> TokenSequence:
        batch, row = self._find(index)
        ids, trained = batch.column(0), batch.column(1)
        start, end = ids.offsets[row].as_py(), ids.offsets[row + 1].as_py()
        return TokenSequence(
            ids.values.slice(start, end - start).to_numpy(), trained.values.slice(start, end - start).to_numpy()
        )

    def place(self, index: int) -> str:
        """`file:line` of the record that a sequence came from."""
        batch, row = self._find(index)
        return f"{self.stats['files'][batch.column(2)[row].as_py()]}:{batch.column(3)[row].as_py()}"

    def blocks(self) -> Iterator[Block]:
        """All sequences, a record batch at a time, without a copy."""
        for batch in self._batches:
            ids, trained = batch.column(0), batch.column(1)
            yield Block(
                ids.values.to_numpy(), trained.values.to_numpy(), np.diff(ids.offsets.to_numpy()),
                batch.column(2).to_numpy(), batch.column(3).to_numpy(),
            )  # fmt: skip


class StoreWriter:
    """Appends blocks to the Arrow file of a folder; memory holds one block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lengths: list[Ids] = []
        self._sink = pa.OSFile(str(folder / "sequences.arrow"), "wb")
        self._writer = pa.ipc.new_file(self._sink, SCHEMA)

    def append(self, block: Block) -> None:
        """The block's sequences follow those written before."""
        offsets = pa.array(np.concatenate([[0], np.cumsum(block.lengths)]).astype(np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(block.ids)),
            pa.ListArray.from_arrays(offsets, pa.array(block.trained)),
            pa.array(block.files),
            pa.array(block.lines),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._lengths.append(block.lengths)

    def close(self, stats: dict[str, Any]) -> None:
        """The folder is a whole store."""
        self._writer.close()
        self._sink.close()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int32)
        np.save(self.folder / "lengths.npy", lengths.astype(np.int32))
        (self.folder / "stats.json").write_text(json.dumps(stats, indent=1))


def open_or_build(folder: Path, build: Callable[[Path], None]) -> SequenceStore:
    """The store `folder`; where it does not exist, `build` fills a temporary folder that becomes it.

    Of two processes that want the same store, one builds it and the other waits.
    """
    if folder.is_dir():
        return SequenceStore(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            with whole_folder(folder) as temporary:
                build(temporary)
    return SequenceStore(folder)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel frees it when its owner dies
        yield
