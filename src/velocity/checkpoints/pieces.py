"""Stretches of parameters and of their optimizer state in safetensors files, whoever wrote them. It knows no engine.

A file's tensors are laid out flat; a tensor's name says which stretch of which parameter it is, so any number of ranks
can read what any other number wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import safe_open
from torch import Tensor

from velocity.checkpoints.commit import Entry
from velocity.distributed.engine import TrainEngine
from velocity.distributed.flats import STEP, WEIGHT, Flat, Part, Span, take, values_of
from velocity.errors import JobError

Pieces: TypeAlias = list[tuple[str, Tensor]]  # by name in the file

# docs: safetensors, "Format"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64"}
WRITTEN_AT_ONCE = 1 << 26  # bytes


def pieces_of(flats: Sequence[Flat]) -> Pieces:
    """What this rank saves of them, as views."""
    return [
        (_key(kind, span), values[span.at : span.at + span.count])
        for flat in flats
        for kind, values, spans in values_of(flat)
        for span in spans
        if span.ours
    ]


def _key(kind: str, span: Span) -> str:
    part = "" if span.part is None else f"{span.part.axis}:{span.part.first}:{span.part.last}"
    return f"{span.name}|{kind}|{part}|{span.start}"


def write(file: Path, pieces: Pieces) -> Entry:
    """The file holds the pieces, and lies on the disk; its size and hash. Memory for one piece at most is taken."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, values in pieces:
        begin, end = end, end + values.numel() * values.element_size()
        header[key] = {"dtype": DTYPES[values.dtype], "shape": [values.numel()], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = hashlib.sha256(), 0
    with file.open("wb") as stream:
        for data in _chunks(text, pieces):
            stream.write(data)
            digest.update(data)
            size += len(data)
        stream.flush()
        os.fsync(stream.fileno())
    return Entry(size, digest.hexdigest())


def _chunks(header: bytes, pieces: Pieces) -> Iterator[memoryview]:
    yield memoryview(len(header).to_bytes(8, "little") + header)
    for _, values in pieces:
        data = memoryview(values.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        yield from (data[i : i + WRITTEN_AT_ONCE] for i in range(0, len(data), WRITTEN_AT_ONCE))


@dataclass(frozen=True)
class Stored:
    """A stretch that lies in a file."""

    part: Part | None
    start: int
    count: int
    file: Any  # an open safetensors file
    key: str

    def values(self, first: int, last: int) -> Tensor:
        """Those of the parameter (or of its part) from `first` up to `last`."""
        values: Tensor = self.file.get_slice(self.key)[first - self.start : last - self.start]
        return values


class Reader:
    """The pieces of a checkpoint, whatever the ranks that wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: dict[tuple[str, str], list[Stored]] = defaultdict(list)  # by name and kind
        self.with_state: set[str] = set()
        for file in sorted(folder.glob("part-*.safetensors")):
            opened: Any = safe_open(str(file), framework="pt")
            for key in opened.keys():  # noqa: SIM118 - it is no mapping
                self._add(opened, key)
        for found in self.stored.values():
            found.sort(key=lambda one: one.start)

    def _add(self, opened: Any, key: str) -> None:
        name, kind, part, start = key.rsplit("|", 3)
        (count,) = opened.get_slice(key).get_shape()
        axis_first_last = Part(*map(int, part.split(":"))) if part else None
        self.stored[name, kind].append(Stored(axis_first_last, int(start), count, opened, key))
        if kind != WEIGHT:
            self.with_state.add(name)

    def read(self, kind: str, span: Span) -> Tensor:
        """The values of a stretch, laid out flat; state that no step has made yet is 0. JobError where some lack."""
        found = self.stored.get((span.name, kind), [])
        if not found and kind != WEIGHT and span.name not in self.with_state:
            return torch.zeros(span.count)
        same = [one for one in found if one.part == span.part]
        if same or not found:
            return self._joined(same, span.start, span.count, kind, span)
        return self._whole(found, kind, span).flatten()[span.start : span.start + span.count]

    def _joined(self, found: Sequence[Stored], start: int, count: int, kind: str, span: Span) -> Tensor:
        """The stretch of `count` values from `start`, out of pieces that may overlap."""
        joined: list[Tensor] = []
        at, end = start, start + count
        for one in found:
            if one.start <= at < one.start + one.count and at < end:
                last = min(end, one.start + one.count)
                joined.append(one.values(at, last))
                at = last
        if at < end:
            what = f"{kind} of {span.name} is not whole: {at - start} values of {count}"
            raise JobError(what, str(self.folder), "this is a defect of Velocity; report it")
        return torch.cat(joined)

    def _whole(self, found: Sequence[Stored], kind: str, span: Span) -> Tensor:
        """The span's parameter, or the part of it that the span is of, out of other parts or of the whole."""
        parts = {one.part for one in found}
        count = sum(max(one.start + one.count for one in found if one.part == part) for part in parts)
        shape = list(span.shape)
        if span.part is not None:
            others = math.prod(length for axis, length in enumerate(shape) if axis != span.part.axis)
            shape[span.part.axis] = count // others
        whole = torch.empty(shape)
        for part in parts:
            place = whole if part is None else whole.narrow(part.axis, part.first, part.last - part.first)
            pieces = [one for one in found if one.part == part]
            place.copy_(self._joined(pieces, 0, place.numel(), kind, span).view(place.shape))
        if span.part is None:
            return whole
        return whole.narrow(span.part.axis, span.part.first, span.part.last - span.part.first)


def part_of(rank: int, number: int) -> str:
    """The file of a rank's flat tensors, counted as the engine gives them."""
    return f"part-{rank:05}-{number:03}.safetensors"


def restore(engine: TrainEngine, folder: Path) -> None:
    """The engine's weights and optimizer state are those of the folder's pieces. Every rank calls it.

    JobError where the optimizer has state and the pieces have none: no optimizer begins anew in silence.
    """
    reader = Reader(folder)
    for flats in engine.flats(start=True):
        for flat in flats:
            if not reader.with_state and any(kind not in (WEIGHT, STEP) for kind, *_ in values_of(flat)):
                fix = "start another job with these weights: model: a finished run's folder"
                raise JobError("the checkpoint holds no optimizer state", str(folder), fix)
            take(flat, reader.read)
    engine.refresh()
