"""Sequences of a few numbers, and stores of them: what is laid out, stored or dealt out needs no tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from velocity.data.corpus import Corpus
from velocity.data.encode import TokenSequence
from velocity.data.store import Block, SequenceStore, StoreWriter


def sequence(ids: Sequence[int], trained: Sequence[int]) -> TokenSequence:
    """A sequence of one piece."""
    return TokenSequence(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.uint8))


def answered(prompt: Sequence[int], *answers: Sequence[int], desirable: bool = True) -> TokenSequence:
    """A prompt with one or two answers that are trained on; a negative number is a token of theirs that is not."""
    behind = [token for answer in answers for token in answer]
    ids = np.abs(np.array([*prompt, *behind], dtype=np.int32))
    trained = np.array([0] * len(prompt) + [token >= 0 for token in behind], dtype=np.uint8)
    first, second, *_ = [*map(len, answers), 0]
    return TokenSequence(ids, trained, parts=(len(prompt), first, second), desirable=desirable)


def write_store(folder: Path, sequences: Sequence[TokenSequence]) -> SequenceStore:
    """A store of them; each comes from a line of its own."""
    folder.mkdir()
    writer = StoreWriter(folder)
    writer.append(Block.of(sequences, 0, range(1, len(sequences) + 1)))
    writer.close({"files": [f"{folder.name}.jsonl"], "trained": sum(int(each.trained.sum()) for each in sequences)})
    return SequenceStore(folder)


def corpus_of(folder: Path, *parts: Sequence[TokenSequence]) -> Corpus:
    """A corpus of a store a part."""
    stores = [write_store(folder / f"part{number}", sequences) for number, sequences in enumerate(parts)]
    return Corpus(stores, [1.0] * len(stores))
