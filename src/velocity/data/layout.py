"""How the sequences of a task lie in rows: the tokens each one takes, and the batch that rows make.

Shape letters: N sequences of a corpus. A pair that shares its prompt lies as prompt and chosen answer, then the
prompt's last token once more and the rejected answer, which goes on from the prompt (arXiv 2410.20305 shows the idea;
docs/adr/0009 what was measured). The last token of an answer has no label, so it is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from velocity.batch import IGNORED, Batch
from velocity.config.training import TrainingJob
from velocity.data.collate import Piece, collate, whole
from velocity.data.corpus import Corpus
from velocity.data.encode import TokenSequence
from velocity.data.pack import Indices
from velocity.data.turns import Ids


class Layout(Protocol):
    """What a row of a task is made of. `name` tells apart what different layouts make of the same sequences."""

    name: str
    pack_epoch: bool  # rows are packed from a whole epoch, or from the sequences of one global batch

    def lengths(self, corpus: Corpus) -> Ids:
        """Tokens that each sequence takes in a row."""

    def collate(self, corpus: Corpus, rows: Sequence[Indices]) -> Batch:
        """The batch of some rows of corpus indices."""


def build_layout(job: TrainingJob) -> Layout:
    """The layout of the job's task: the only place that matches on it."""
    if job.task != "preference":
        return Sequences()
    assert job.preference is not None, "a preference job has an objective"
    if job.preference.kind == "kto":
        return SingleAnswers(job.data.sequence_length)
    return Pairs(share_prompt=job.model.attention in ("auto", "varlen"))  # others cannot express it


class Sequences:
    """Each sequence by itself: pre-training and fine-tuning. A global batch counts rows, packed or not."""

    name = "sequences"
    pack_epoch = True

    def lengths(self, corpus: Corpus) -> Ids:
        """Their tokens."""
        return corpus.lengths

    def collate(self, corpus: Corpus, rows: Sequence[Indices]) -> Batch:
        """A piece a sequence."""
        return collate([[whole(corpus[index]) for index in row] for row in rows], _places(corpus, rows))


class Pairs:
    """A prompt with its chosen and its rejected answer, computed once or twice. A global batch counts pairs."""

    pack_epoch = False

    def __init__(self, *, share_prompt: bool) -> None:
        self.share_prompt = share_prompt
        self.name = "pairs"  # the scores of a pair do not depend on how its prompt is computed

    def lengths(self, corpus: Corpus) -> Ids:
        """Tokens of both answers and of the prompt, once or twice."""
        prompt_N, chosen_N, rejected_N = corpus.parts_N3.T
        lengths: Ids = (prompt_N - 1) * (1 if self.share_prompt else 2) + chosen_N + rejected_N
        return lengths

    def collate(self, corpus: Corpus, rows: Sequence[Indices]) -> Batch:
        """Two pieces a pair."""
        numbers, count = _numbers(rows), sum(map(len, rows))
        pieces = [[p for index in row for p in self._pieces(corpus[index], next(numbers), count)] for row in rows]
        reference = _reference(corpus, rows)
        answers = {"reference_A": None if reference is None else torch.from_numpy(reference.T.ravel().copy())}
        return collate(pieces, _places(corpus, rows), answers)

    def _pieces(self, pair: TokenSequence, number: int, count: int) -> list[Piece]:
        prompt, chosen, rejected = _split(pair)
        shared = len(prompt[0]) - 1 if self.share_prompt else 0
        second = answer(prompt, rejected, count + number)
        tail = Piece(second.ids[shared:], second.labels[shared:], shared, shared, second.answer)
        return [answer(prompt, chosen, number), tail]


class SingleAnswers:
    """A prompt with one answer, and beside it the prompt with another one's: KTO. A global batch counts answers."""

    pack_epoch = False

    def __init__(self, limit: int) -> None:
        self.limit = limit  # tokens of a prompt with an answer: the other one is cut to it
        self.name = f"single answers of {limit}"
        self._known: WeakKeyDictionary[Corpus, Indices] = WeakKeyDictionary()

    def lengths(self, corpus: Corpus) -> Ids:
        """Tokens of the prompt with its own answer or with the other one, whichever is longer."""
        prompt_N, answer_N, _ = corpus.parts_N3.T
        other_N = answer_N[self._partners(corpus)]
        lengths: Ids = prompt_N - 1 + np.maximum(answer_N, np.minimum(other_N, self.limit - prompt_N))
        return lengths

    def collate(self, corpus: Corpus, rows: Sequence[Indices]) -> Batch:
        """A piece an answer; the mismatched batch has as many."""
        reference, places = _reference(corpus, rows), _places(corpus, rows)
        desirable = [corpus[index].desirable for row in rows for index in row]
        own, other = (
            {"reference_A": None if reference is None else torch.from_numpy(reference[:, column].copy())}
            for column in (0, 1)
        )
        mismatched = collate(self._pieces(corpus, rows, self._partners(corpus)), places, other)
        fields = {**own, "desirable_A": torch.tensor(desirable, dtype=torch.bool), "mismatched": mismatched}
        return collate(self._pieces(corpus, rows, np.arange(len(corpus.lengths))), places, fields)

    def _pieces(self, corpus: Corpus, rows: Sequence[Indices], whose: Indices) -> list[list[Piece]]:
        """A piece an index: its prompt, with the answer of `whose[index]`."""
        numbers = _numbers(rows)

        def piece(index: int) -> Piece:
            prompt = _split(corpus[index])[0]
            ids, trained = _split(corpus[whose[index]])[1]
            room = self.limit - len(prompt[0])
            return answer(prompt, (ids[:room], trained[:room]), next(numbers))

        return [[piece(int(index)) for index in row] for row in rows]

    def _partners(self, corpus: Corpus) -> Indices:
        """Whose answer is set beside each prompt: the first from half the corpus on that answers another prompt."""
        if corpus not in self._known:
            self._known[corpus] = mismatch(corpus.prompts_N)
        return self._known[corpus]


def mismatch(prompts_N: NDArray[np.int64]) -> Indices:
    """For each prompt the nearest index, from half their number on, of another one; any, where all are the same."""
    count = len(prompts_N)
    partners = (np.arange(count) + count // 2) % count
    for _ in range(count):
        same = prompts_N[partners] == prompts_N
        if not same.any():
            break
        partners[same] = (partners[same] + 1) % count
    return partners


Part = tuple[Ids, Any]  # ids, and for each whether it is trained on


def _split(sequence: TokenSequence) -> tuple[Part, Part, Part]:
    first, second = sequence.parts[0], sequence.parts[0] + sequence.parts[1]
    cuts = (slice(0, first), slice(first, second), slice(second, None))
    prompt, chosen, rejected = ((sequence.ids[cut], sequence.trained[cut]) for cut in cuts)
    return prompt, chosen, rejected


def answer(prompt: Part, part: Part, number: int) -> Piece:
    """A prompt with one answer: every token but the last one, and the answer's tokens as labels."""
    ids = np.concatenate([prompt[0], part[0][:-1]])
    labels = np.full(len(ids), IGNORED, dtype=np.int32)
    labels[len(prompt[0]) - 1 :] = np.where(part[1], part[0], IGNORED)
    return Piece(ids, labels, answer=number)


def _numbers(rows: Sequence[Indices]) -> Iterator[int]:
    return iter(range(sum(map(len, rows))))


def _places(corpus: Corpus, rows: Sequence[Indices]) -> list[str]:
    return [corpus.place(int(index)) for row in rows for index in row]


def _reference(corpus: Corpus, rows: Sequence[Indices]) -> Any:
    """reference_N2 of the rows' sequences; None where the corpus has none."""
    if corpus.reference_N2 is None:
        return None
    return corpus.reference_N2[np.concatenate([np.zeros(0, dtype=np.int64), *rows])]
