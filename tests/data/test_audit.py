"""The audit catches every invariant that is broken by hand, and lets what holds pass; and it counts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.making import chat, tiny_tokenizer
from velocity.data.audit import TokenFacts, audit, count, token_facts
from velocity.data.encode import Encoder, EncodingRules
from velocity.data.records import Text, parse
from velocity.data.store import Block, SequenceStore, StoreWriter
from velocity.errors import JobError

BOS, EOS = 1, 2
FACTS = TokenFacts(bos=BOS, wanted_bos=BOS, eos=EOS, special=frozenset({BOS, EOS}))
CHAT = EncodingRules(6, "assistant", "cut")
TEXT = EncodingRules(6, "all", "error")

Pairs = list[tuple[int, int]]  # (token, whether it is trained on)
GOOD: Pairs = [(BOS, 0), (7, 0), (8, 1), (EOS, 1), (9, 0)]
GOOD_TEXT: Pairs = [(BOS, 0), (7, 1), (8, 1)]


def block(*sequences: Pairs) -> Block:
    flat = [pair for sequence in sequences for pair in sequence]
    return Block(
        np.array([token for token, _ in flat], dtype=np.int32),
        np.array([trained for _, trained in flat], dtype=np.uint8),
        np.array([len(sequence) for sequence in sequences], dtype=np.int32),
        np.arange(len(sequences), dtype=np.int32) % 2,
        np.arange(len(sequences), dtype=np.int64) + 10,
    )


@pytest.mark.parametrize(
    ("rules", "bad", "says"),
    [
        (CHAT, [(BOS, 0), *[(7, 0)] * 4, (8, 1), (EOS, 1)], "a sequence is longer than data.sequence_length"),
        (CHAT, [(BOS, 1), (7, 0), (8, 1), (EOS, 1)], "the first token of a sequence is trained on"),
        (CHAT, [(BOS, 0), (BOS, 0), (8, 1), (EOS, 1)], "a sequence begins with two BOS tokens"),
        (TEXT, [(BOS, 0), (BOS, 1), (8, 1)], "a sequence begins with two BOS tokens"),
        (TEXT, [(7, 0), (8, 1)], "a sequence does not begin with the BOS token"),
        (CHAT, [(BOS, 0), (7, 0), (8, 1)], "an assistant's turn does not end with a special token"),
        (CHAT, [(BOS, 0), (8, 1), (7, 0), (8, 1), (EOS, 1)], "an assistant's turn does not end with a special token"),
        (CHAT, [(BOS, 0), (8, 1), (EOS, 1), (9, 1)], "an assistant's turn does not end with a special token"),
    ],
)
def test_an_invariant_that_is_broken_is_named_with_the_place_of_the_record(rules: EncodingRules, bad: Pairs, says: str):
    good = GOOD if rules is CHAT else GOOD_TEXT
    with pytest.raises(JobError) as caught:
        audit([block(good, good), block(good, bad, good)], FACTS, rules, ["a.jsonl", "b.jsonl"])
    [problem] = caught.value.problems
    assert (problem.what, problem.where) == (says, "b.jsonl:11")


@pytest.mark.parametrize(
    ("rules", "sequences"),
    [
        (CHAT, [GOOD, GOOD]),
        (TEXT, [GOOD_TEXT, GOOD_TEXT]),
        (CHAT, [[(BOS, 0), (7, 0), (8, 1), (8, 1), (8, 1), (8, 1)]]),  # cut: as long as a sequence may be
        (CHAT, [[(7, 0), (8, 1), (EOS, 1)]]),  # a chat's BOS is its template's affair
        (TEXT, [[(BOS, 0)]]),  # one token is no two
        (TEXT, [[(BOS, 0), (7, 1), (BOS, 1)]]),  # a BOS between documents of one text
    ],
)
def test_sequences_that_hold_pass(rules: EncodingRules, sequences: list[Pairs]):
    audit([block(*sequences)], FACTS, rules, ["a.jsonl", "b.jsonl"])


def test_a_turns_open_end_is_not_hidden_by_the_sequence_behind_it():
    # the next sequence begins with a trained token: taken as one run, both would end in a special token
    open_end: Pairs = [(BOS, 0), (8, 1)]
    with pytest.raises(JobError, match="does not end with a special token"):
        audit([block(open_end, GOOD)], FACTS, CHAT, ["a", "b"])


def test_no_bos_is_asked_for_where_the_model_wants_none():
    facts = TokenFacts(bos=None, wanted_bos=None, eos=EOS, special=frozenset({EOS}))
    audit([block([(7, 0), (8, 1)])], facts, TEXT, ["a"])


def test_the_facts_of_a_tokenizer_are_its_special_tokens():
    with_bos, without = token_facts(tiny_tokenizer("llama3", add_bos=True)), token_facts(tiny_tokenizer("llama3"))
    assert (with_bos.wanted_bos, without.wanted_bos) == (with_bos.bos, None)
    tokenizer = tiny_tokenizer("llama3")
    names = set(tokenizer.convert_ids_to_tokens(sorted(without.special)))
    assert {"<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>"} <= names


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen2_5", "mistral"])
def test_what_the_encoder_makes_passes(name: str):
    tokenizer = tiny_tokenizer(name, add_bos=name in ("llama3", "mistral"))
    for train_on, record in (("assistant", parse(chat("a", "b", "c", "d"), None, {})), ("all", Text("some text" * 9))):
        rules = EncodingRules(128, train_on, "error")
        sequences = Encoder(tokenizer, rules).encode(record)
        made = block(*(list(zip(s.ids.tolist(), s.trained.tolist(), strict=True)) for s in sequences))
        audit([made], token_facts(tokenizer), rules, ["a", "b"])


def store(folder: Path, lengths: list[int], trained: int) -> SequenceStore:
    folder.mkdir()
    writer = StoreWriter(folder)
    writer.append(block(*([(7, 0)] * length for length in lengths)))
    writer.close({"trained": trained, "files": ["a", "b"]})
    return SequenceStore(folder)


def test_counts_are_those_of_all_stores_together(tmp_path: Path):
    stores = [store(tmp_path / "a", [6, 2, 4], trained=5), store(tmp_path / "b", [3], trained=2)]
    counts = count(stores, 10, packing=True)
    assert (counts.sequences, counts.tokens, counts.trained) == (4, 15, 7)
    # best fit into bins of 10: 6 + 4, 3 + 2
    assert (counts.rows, counts.efficiency) == (2, 15 / 20)
    assert counts.percentiles == {0: 2, 10: 3, 50: 4, 90: 6, 99: 6, 100: 6}


def test_without_packing_a_row_is_a_sequence_padded_to_the_longest(tmp_path: Path):
    counts = count([store(tmp_path / "a", [6, 2, 4], trained=5)], 10, packing=False)
    assert (counts.rows, counts.efficiency) == (3, 12 / 18)
