"""Tokenised sequences on disk: one Arrow file, memory-mapped, and its counts. It knows no tokenizer.

A store is written to a temporary folder and renamed when whole. It lists its files with their hashes: one that was
damaged since is found when a job starts, and built again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from velocity.data.encode import TokenSequence
from velocity.data.fingerprint import content_hash, digest, hash_of
from velocity.data.turns import Ids, Mask
from velocity.errors import UserError
from velocity.files import make_private, whole_folder, why_untrusted
from velocity.terminal import say

SCHEMA = pa.schema({
    "ids": pa.list_(pa.int32()), "trained": pa.list_(pa.uint8()), "file": pa.int32(), "line": pa.int64(),
    "parts": pa.list_(pa.int32(), 3), "desirable": pa.uint8(),
})  # fmt: skip
Parts = NDArray[np.int32]
SEAL = "seal.json"  # the hash of every other file of a store


@dataclass(frozen=True)
class Block:
    """Some sequences, laid end to end: `ids` and `trained` of all, then what is known of each one.

    `parts_N3` and `desirable` are as in TokenSequence.
    """

    ids: Ids
    trained: Mask
    lengths: Ids
    files: Ids
    lines: NDArray[np.int64]
    parts_N3: Parts
    desirable: Mask

    @classmethod
    def of(cls, sequences: Sequence[TokenSequence], file: int, lines: Sequence[int]) -> Block:
        """The sequences made from some lines of one file."""
        count = len(sequences)
        return cls(
            np.concatenate([np.zeros(0, dtype=np.int32), *(sequence.ids for sequence in sequences)]),
            np.concatenate([np.zeros(0, dtype=np.uint8), *(sequence.trained for sequence in sequences)]),
            np.array([len(sequence.ids) for sequence in sequences], dtype=np.int32),
            np.full(count, file, dtype=np.int32),
            np.array(lines, dtype=np.int64),
            np.array([sequence.parts for sequence in sequences], dtype=np.int32).reshape(count, 3),
            np.array([sequence.desirable for sequence in sequences], dtype=np.uint8),
        )


class ArrowRows:
    """Random access to the rows of an Arrow file, memory-mapped."""

    def __init__(self, path: Path) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self.batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        self._ends = np.cumsum([batch.num_rows for batch in self.batches])

    def find(self, index: int) -> tuple[pa.RecordBatch, int]:
        """The batch that holds a row, and its place there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        batch = self.batches[number]
        return batch, index - int(self._ends[number]) + batch.num_rows


class SequenceStore:
    """Random access to the sequences of one source. Opening costs a few system calls, whatever the size."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
        self.lengths: Ids = np.load(folder / "lengths.npy", mmap_mode="r")
        self._rows = ArrowRows(folder / "sequences.arrow")

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenSequence:
        batch, row = self._rows.find(index)
        ids, trained = batch.column(0), batch.column(1)
        start, end = ids.offsets[row].as_py(), ids.offsets[row + 1].as_py()
        return TokenSequence(
            ids.values.slice(start, end - start).to_numpy(),
            trained.values.slice(start, end - start).to_numpy(),
            parts=tuple(batch.column(4).values.slice(3 * row, 3).to_pylist()),
            desirable=bool(batch.column(5)[row].as_py()),
        )

    def place(self, index: int) -> str:
        """`file:line` of the record that a sequence came from."""
        batch, row = self._rows.find(index)
        return f"{self.stats['files'][batch.column(2)[row].as_py()]}:{batch.column(3)[row].as_py()}"

    def blocks(self) -> Iterator[Block]:
        """All sequences, a record batch at a time, without a copy."""
        for batch in self._rows.batches:
            ids, trained = batch.column(0), batch.column(1)
            yield Block(
                ids.values.to_numpy(), trained.values.to_numpy(), np.diff(ids.offsets.to_numpy()),
                batch.column(2).to_numpy(), batch.column(3).to_numpy(),
                batch.column(4).values.to_numpy().reshape(-1, 3), batch.column(5).to_numpy(),
            )  # fmt: skip

    @property
    def parts_N3(self) -> Parts:  # noqa: N802 - shape letters
        """Lengths of prompt and answers of every sequence."""
        return np.concatenate([block.parts_N3 for block in self.blocks()])


class StoreWriter:
    """Appends blocks to the Arrow file of a folder; memory holds one block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lengths: list[Ids] = []
        self._content = [hashlib.blake2b(digest_size=16) for _ in range(5)]  # one a column: blocks may end anywhere
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
            pa.FixedSizeListArray.from_arrays(pa.array(block.parts_N3.ravel()), 3),
            pa.array(block.desirable),
        ]
        self._writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
        self._lengths.append(block.lengths)
        hashed = (block.lengths, block.ids, block.trained, block.parts_N3, block.desirable)
        for hasher, column in zip(self._content, hashed, strict=True):
            hasher.update(np.ascontiguousarray(column).tobytes())

    def close(self, stats: dict[str, Any]) -> None:
        """The folder is a whole store; its stats say what was counted, and what its sequences are, as a hash."""
        self._writer.close()
        self._sink.close()
        lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, dtype=np.int32)
        np.save(self.folder / "lengths.npy", lengths.astype(np.int32))
        (self.folder / "stats.json").write_text(
            json.dumps({**stats, "content": digest([one.hexdigest() for one in self._content])}, indent=1)
        )


def open_cache(path: str) -> Path:
    """The folder `data.cache`, made if need be; UserError where anybody may write what we would train on."""
    cache = Path(path).expanduser()
    make_private(cache)
    if why := why_untrusted(cache, shared=True):  # a team's may be of one of its members
        raise UserError(f"the cache is not to be trusted: {why}", f"data.cache {cache}", f"chmod o-w {cache}")
    return cache


def open_or_build(folder: Path, build: Callable[[Path], None], cache: Path) -> SequenceStore:
    """The store `folder`; where it does not exist whole, `build` fills a temporary folder that becomes it."""
    build_once(folder, build, cache)
    return SequenceStore(folder)


def build_once(folder: Path, build: Callable[[Path], None], cache: Path) -> None:
    """The folder exists: as it was, or as `build` filled it, whole. Of two processes one builds and the other waits.

    One that was damaged is said, and built again. The files are read where `cache` has no note that they were.
    """
    if folder.is_dir() and damage(folder, cache) is None:
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder.with_suffix(".lock")):
        why = damage(folder, cache) if folder.is_dir() else ""
        if why is None:
            return
        if why:
            say(f"WARNING: what was tokenised into {folder} is damaged: {why}; it is made again")
        with whole_folder(folder) as temporary:
            build(temporary)
            seal(temporary)


def seal(folder: Path) -> None:
    """What lies in the folder now is what belongs there."""
    (folder / SEAL).unlink(missing_ok=True)
    hashes = {path.name: hash_of(path) for path in sorted(folder.iterdir())}
    (folder / SEAL).write_text(json.dumps({"files": hashes, "all": digest(hashes)}, indent=1))


def damage(folder: Path, cache: Path) -> str | None:
    """What is wrong with a store; None where its files are those that were built."""
    try:
        sealed = json.loads((folder / SEAL).read_text())
        if sealed["all"] != digest(sealed["files"]):
            return f"{SEAL} has changed"
        for name, known in sealed["files"].items():
            if content_hash(folder / name, cache) != known:
                return f"{name} has changed"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, KeyError):
        return f"{SEAL} has changed"
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the kernel frees it when its owner dies
        yield
