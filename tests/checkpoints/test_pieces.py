"""Pieces that some ranks wrote are read by others: any ranges, whole matrices or parts of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from velocity.checkpoints.commit import entry_of
from velocity.checkpoints.pieces import Reader, part_of, pieces_of, restore, write
from velocity.distributed.flats import WEIGHT, Flat, Part, Span
from velocity.errors import JobError

MATRIX = torch.arange(24, dtype=torch.float32).view(4, 6)


def flat_of(part: Part | None, start: int, count: int, *, ours: bool = True, name: str = "matrix") -> Flat:
    """A rank's flat tensor with a stretch of the matrix, and of its state, behind two values of something else."""
    whole = MATRIX if part is None else MATRIX.narrow(part.axis, part.first, part.last - part.first)
    values = torch.cat([torch.tensor([-1.0, -2.0]), whole.flatten()[start : start + count]])
    span = Span(name, tuple(whole.shape), part, start, 2, count, ours)
    return Flat(values, {"step": torch.tensor(3.0), "moment": values * 10}, [span])


def written(folder: Path, *ranks: list[Flat]) -> Reader:
    for rank, flats in enumerate(ranks):
        write(folder / part_of(rank, 0), pieces_of(flats))
    return Reader(folder)


def span_of(part: Part | None, start: int, count: int) -> Span:
    whole = MATRIX if part is None else MATRIX.narrow(part.axis, part.first, part.last - part.first)
    return Span("matrix", tuple(whole.shape), part, start, 0, count)


def expected(part: Part | None, start: int, count: int) -> torch.Tensor:
    whole = MATRIX if part is None else MATRIX.narrow(part.axis, part.first, part.last - part.first)
    return whole.flatten()[start : start + count]


LAYOUTS: dict[str, list[tuple[Part | None, int, int]]] = {
    "whole": [(None, 0, 24)],
    "three ranks": [(None, 0, 7), (None, 7, 11), (None, 18, 6)],
    "overlapping": [(None, 0, 20), (None, 0, 24), (None, 3, 21)],
    "rows": [(Part(0, 0, 3), 0, 18), (Part(0, 3, 4), 0, 6)],
    "columns": [(Part(1, 0, 2), 0, 8), (Part(1, 2, 6), 0, 16)],
    "columns in pieces": [(Part(1, 0, 2), 0, 5), (Part(1, 0, 2), 5, 3), (Part(1, 2, 6), 0, 9), (Part(1, 2, 6), 9, 7)],
}


@pytest.mark.parametrize("other", LAYOUTS)
@pytest.mark.parametrize("one", LAYOUTS)
def test_every_layout_reads_what_every_other_wrote(tmp_path: Path, one: str, other: str) -> None:
    reader = written(tmp_path, *([flat_of(*place)] for place in LAYOUTS[one]))
    for place in LAYOUTS[other]:
        assert torch.equal(reader.read(WEIGHT, span_of(*place)), expected(*place))
        assert torch.equal(reader.read("moment", span_of(*place)), expected(*place) * 10)


def test_the_file_is_plain_safetensors_and_its_entry_that_of_the_file(tmp_path: Path) -> None:
    values = {torch.float32: [1.5, -2.0], torch.bfloat16: [0.5] * 3, torch.float16: [2.0], torch.int64: [7]}
    pieces = [(f"p{i}", torch.tensor(numbers, dtype=dtype)) for i, (dtype, numbers) in enumerate(values.items())]
    entry = write(tmp_path / "file.safetensors", pieces)
    assert entry == entry_of(tmp_path / "file.safetensors")
    loaded = load_file(tmp_path / "file.safetensors")
    assert all(torch.equal(loaded[key], tensor) and loaded[key].dtype == tensor.dtype for key, tensor in pieces)


def test_what_another_rank_saves_is_left_to_it(tmp_path: Path) -> None:
    assert pieces_of([flat_of(None, 0, 24, ours=False)]) == []


def test_steps_are_counted_for_the_parameter_whose_first_value_is_there(tmp_path: Path) -> None:
    reader = written(tmp_path, [flat_of(None, 0, 7)], [flat_of(None, 7, 17)])
    assert reader.read("step", Span("matrix", (1,), None, 0, 0, 1)).tolist() == [3]
    assert not [key for key, _ in pieces_of([flat_of(None, 7, 17)]) if "|step|" in key]


def test_state_that_no_step_has_made_is_zero_and_what_is_lacking_an_error(tmp_path: Path) -> None:
    flat = flat_of(None, 0, 24)
    never = Flat(flat.tensor, {}, [Span("other", (24,), None, 0, 2, 24)])
    reader = written(tmp_path, [flat_of(None, 0, 20), never])
    assert torch.equal(reader.read("moment", Span("other", (24,), None, 3, 0, 4)), torch.zeros(4))
    with pytest.raises(JobError, match=r"weight of matrix is not whole: 17 values of 21"):
        reader.read(WEIGHT, span_of(None, 3, 21))
    with pytest.raises(JobError, match="variance of matrix is not whole"):
        reader.read("variance", span_of(None, 0, 4))
    with pytest.raises(JobError, match="weight of third is not whole"):
        reader.read(WEIGHT, Span("third", (4,), None, 0, 0, 4))


def test_an_optimizer_that_has_state_does_not_begin_anew_in_silence(tmp_path: Path) -> None:
    class Engine:
        """An engine of one matrix, whose optimizer has a moment."""

        def flats(self, *, start: bool) -> list[list[Flat]]:
            return [[flat_of(None, 0, 24)]]

        def refresh(self) -> None: ...

    stateless = Flat(flat_of(None, 0, 24).tensor, {}, flat_of(None, 0, 24).spans)
    written(tmp_path, [stateless])
    with pytest.raises(JobError, match="holds no optimizer state"):
        restore(cast(Any, Engine()), tmp_path)
