"""Counts of a data set, and the invariants of its masks, over every token. It reads what is stored, no template.

Asserted: a sequence fits its row; its first token is no label; where the model wants a BOS, one stands first and no
second behind it; an assistant's turn that was not cut ends with a special token; the two answers of a pair differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from velocity.data.encode import EncodingRules, adds_bos
from velocity.data.pack import best_fit
from velocity.data.store import Block, SequenceStore
from velocity.data.tokenizer import special_ids
from velocity.errors import JobError


@dataclass(frozen=True)
class TokenFacts:
    """What the audit needs to know of a tokenizer. `wanted_bos` is None where the model expects no BOS."""

    bos: int | None
    wanted_bos: int | None
    eos: int | None
    special: frozenset[int]


def token_facts(tokenizer: Any) -> TokenFacts:
    """The facts of a Hugging Face tokenizer."""
    wanted_bos = tokenizer.bos_token_id if adds_bos(tokenizer) else None
    return TokenFacts(tokenizer.bos_token_id, wanted_bos, tokenizer.eos_token_id, special_ids(tokenizer))


def audit(blocks: Iterable[Block], facts: TokenFacts, rules: EncodingRules, files: list[str]) -> None:
    """Nothing, or JobError that names the first record that breaks an invariant."""
    for block in blocks:
        for wrong, bad in _violations(block, facts, rules):
            if bad.any():
                row = int(np.argmax(bad))
                place = f"{files[block.files[row]]}:{block.lines[row]}"
                raise JobError(wrong, place, "this is a defect of Velocity or of the chat template; please report it")


def without_bos(blocks: Iterable[Block], facts: TokenFacts) -> int:
    """How many sequences lack the BOS that the tokenizer puts before plain text: some chat templates render none."""
    if facts.wanted_bos is None:
        return 0
    return sum(int((block.ids[np.cumsum(block.lengths) - block.lengths] != facts.wanted_bos).sum()) for block in blocks)


def _violations(block: Block, facts: TokenFacts, rules: EncodingRules) -> Iterator[tuple[str, Any]]:
    starts = np.concatenate([[0], np.cumsum(block.lengths)[:-1]]).astype(np.int64)
    prompts_N, answers_N2 = block.parts_N3[:, 0], block.parts_N3[:, 1:]
    lengths = np.where(prompts_N > 0, prompts_N + answers_N2.max(axis=1), block.lengths)
    yield "a sequence is longer than data.sequence_length", lengths > rules.sequence_length
    yield "the first token of a sequence is trained on", block.trained[starts] != 0
    if facts.bos is not None:
        second = np.minimum(starts + 1, starts + block.lengths - 1)
        doubled = (block.ids[starts] == facts.bos) & (block.ids[second] == facts.bos) & (second > starts)
        yield "a sequence begins with two BOS tokens", doubled
    if rules.train_on in ("pairs", "answers"):
        sums = np.concatenate([[0], np.cumsum(block.trained, dtype=np.int64)])
        yield "a prompt is trained on", sums[starts + prompts_N] > sums[starts]
    if rules.train_on == "pairs":
        yield "the chosen and the rejected answer are the same", _equal_answers(block, starts)
    if rules.train_on != "all" and facts.eos is not None:
        yield "an assistant's turn does not end with a special token", _open_ended(block, facts, rules, starts)
    elif facts.wanted_bos is not None:
        yield "a sequence does not begin with the BOS token", block.ids[starts] != facts.wanted_bos


def _equal_answers(block: Block, starts: Any) -> Any:
    """For each pair, whether its two answers are the same tokens."""
    equal = np.zeros(len(starts), dtype=bool)
    for row in np.flatnonzero(block.parts_N3[:, 1] == block.parts_N3[:, 2]):
        prompt, answer, _ = block.parts_N3[row]
        chosen = starts[row] + prompt
        pair = block.ids[chosen : chosen + 2 * answer]
        equal[row] = np.array_equal(pair[:answer], pair[answer:])
    return equal


def _open_ended(block: Block, facts: TokenFacts, rules: EncodingRules, starts: Any) -> Any:
    """For each sequence, whether a run of trained tokens ends in an ordinary one although it was not cut there."""
    prompts_N, chosen_N, rejected_N = block.parts_N3.T
    following = np.append(block.trained[1:], 0)
    following[starts + block.lengths - 1] = 0
    following[(starts + prompts_N + chosen_N - 1)[rejected_N > 0]] = 0  # the rejected answer begins a run of its own
    ends = np.flatnonzero((block.trained == 1) & (following == 0) & ~np.isin(block.ids, list(facts.special)))
    rows = np.searchsorted(starts, ends, side="right") - 1
    in_chosen = ends < (starts + prompts_N + chosen_N)[rows]
    own = prompts_N[rows] + np.where(in_chosen, chosen_N[rows], rejected_N[rows])  # of the prompt with that answer
    own = np.where(prompts_N[rows] > 0, own, block.lengths[rows])
    open_ended = np.zeros(len(starts), dtype=bool)
    open_ended[rows[own < rules.sequence_length]] = True
    return open_ended


@dataclass(frozen=True)
class Counts:
    """What a data set holds."""

    sequences: int
    tokens: int
    trained: int
    percentiles: dict[int, int]
    rows: int
    efficiency: float  # share of the rows that is not padding


def count(stores: Iterable[SequenceStore], sequence_length: int, *, packing: bool) -> Counts:
    """Counts of some stores together, without weights."""
    stores = list(stores)
    lengths = np.concatenate([np.asarray(store.lengths) for store in stores])
    trained = sum(store.stats["trained"] for store in stores)
    percentiles = {p: int(np.percentile(lengths, p, method="higher")) for p in (0, 10, 50, 90, 99, 100)}
    tokens = int(lengths.sum(dtype=np.int64))
    rows = len(best_fit(lengths, sequence_length)) if packing else len(lengths)
    room = rows * (sequence_length if packing else int(lengths.max()))
    return Counts(len(lengths), tokens, trained, percentiles, rows, tokens / room)
