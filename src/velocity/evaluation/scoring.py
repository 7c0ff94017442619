"""Scores items on an engine, many in one forward; what several answers begin with is computed once. It knows no file.

Shape letters: B rows, S tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from velocity.batch import Batch
from velocity.data.collate import Piece, collate, whole
from velocity.data.encode import TokenSequence
from velocity.data.layout import answer
from velocity.distributed import pulse
from velocity.errors import UserError
from velocity.evaluation.store import Item
from velocity.inference.engine import Engine
from velocity.inference.request import Watch
from velocity.models import attention
from velocity.models.judge import Judge
from velocity.models.probe import TOLERANCE, check_isolation, check_sharing, own_scores, split_gap


@dataclass(frozen=True)
class Asked:
    """A row whose options are to be scored; each is a piece of tokens with labels."""

    row: int
    pieces: Sequence[Piece]
    sample: int = 0

    @property
    def tokens(self) -> int:
        """What a forward takes for it."""
        return sum(len(piece.ids) for piece in self.pieces)


@dataclass(frozen=True)
class Judged:
    """Of one option: the sum of its labels' log-probabilities in nats, their number, and whether all were likeliest."""

    logprob: float
    tokens: int
    likeliest: bool


class Rows(Protocol):
    """Where rows come from."""

    def peek(self) -> Asked | None:
        """The next row, which stays; None where there is no more for us."""

    def pop(self) -> Asked:
        """The next row, which is ours from now on."""


def asked_of(row: int, item: Item, *, share: bool) -> Asked:
    """The row's pieces: its answers behind one prompt, or each behind its own; the windows of a text."""
    if not item.prompt:
        return Asked(row, [whole(TokenSequence(option.ids, option.trained)) for option in item.options])
    return Asked(row, pieces_of(item.prompt, [(option.ids, option.trained) for option in item.options], share=share))


def pieces_of(prompt: Sequence[int], options: Sequence[Any], *, share: bool) -> list[Piece]:
    """A piece an option, given as ids and a mask; where they `share` the prompt it stands in the first one alone."""
    before = (torch.tensor(prompt, dtype=torch.int32).numpy(), None)
    pieces = [answer(before, option, -1) for option in options]
    shared = len(prompt) - 1 if share else 0
    return [pieces[0], *(Piece(one.ids[shared:], one.labels[shared:], shared, shared) for one in pieces[1:])]


class Scorer:
    """An engine that judges labels: measured, before the first row, to score as the model's own logits do."""

    def __init__(self, engine: Engine, limit_tokens: int, *, share: bool) -> None:
        """`limit_tokens` bounds a forward; `share` where answers see one prompt. Every rank of a group makes one."""
        self.engine, self.limit_tokens, self.share = engine, limit_tokens, share

    def check(self) -> None:
        """Nothing, or UserError where packed rows, a shared prompt or a split model are not scored right."""
        vocabulary = int(self.engine.model.config.get_text_config().vocab_size)

        def policy(batch: Batch) -> Tensor:
            return self._judged(batch)[0]

        with torch.inference_mode():
            check_isolation(policy, vocabulary)
            if self.share:
                check_sharing(policy, vocabulary)
            own_S = self.engine.run(lambda model: own_scores(Judge(model, self.limit_tokens), self.engine.device))
            gap = split_gap(policy, vocabulary, own_S)
        if not gap <= TOLERANCE:
            what = f"this architecture's logits are not its head's (off by {gap:.2g} nats): it is not supported"
            raise UserError(what, "model.path", "choose another model, and report this one's name")

    @torch.inference_mode()
    def run(self, rows: Rows, watch: Watch) -> Iterator[tuple[Asked, list[Judged]]]:
        """Every row with what was judged of its options; fewer where we are asked to stop."""
        while True:
            taken = self._take(rows)
            busy, stop = self.engine.any(bool(taken), watch.stopping())
            if stop or not busy:
                return
            pulse.working_on([f"row {one.row}" for one in taken])
            judged_2S = self._judged(collate([[piece for one in taken for piece in one.pieces]] if taken else []))[:, 0]
            watch.made(sum(one.tokens for one in taken))
            if taken:
                yield from zip(taken, _split(taken, judged_2S.cpu()), strict=True)

    def _take(self, rows: Rows) -> list[Asked]:
        taken: list[Asked] = []
        tokens = 0
        while (row := rows.peek()) is not None and (not taken or tokens + row.tokens <= self.limit_tokens):
            taken.append(rows.pop())
            tokens += row.tokens
        return taken

    def _judged(self, batch: Batch) -> Tensor:
        """judged_2BS of a batch: log-probabilities of its labels, and 1 where each is the likeliest token."""
        inputs = batch.inputs(self.engine.device)

        def use(model: Any) -> Tensor:
            judged_2BS: Tensor = Judge(model, self.limit_tokens)(*inputs)
            return judged_2BS

        return self.engine.run(use)


def _split(taken: Sequence[Asked], judged_2S: Tensor) -> Iterator[list[Judged]]:
    start = 0
    for one in taken:
        found = []
        for piece in one.pieces:
            end = start + len(piece.ids)
            labels_S = torch.from_numpy(piece.labels) >= 0
            logps_S, likeliest_S = judged_2S[0, start:end][labels_S].double(), judged_2S[1, start:end][labels_S]
            found.append(Judged(float(logps_S.sum()), int(labels_S.sum()), bool((likeliest_S > 0).all())))
            start = end
        yield found


@contextmanager
def scoring_attention(model: Any, name: str) -> Iterator[None]:
    """Inside, the model attends in a way that keeps packed rows apart."""
    before = model.config.get_text_config()._attn_implementation
    attention.register()
    model.set_attn_implementation(name)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def attention_for(asked: str) -> str:
    """The attention that scores, for what a job asks for."""
    return attention.NAME if asked in ("auto", "varlen") else asked
