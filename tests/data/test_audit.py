"""The audit catches every invariant that is broken by hand, and lets what holds pass; and it counts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.data.stores import answered, sequence, write_store
from tests.making import chat, tiny_tokenizer
from velocity.data.audit import TokenFacts, audit, count, token_facts
from velocity.data.encode import Encoder, EncodingRules, TokenSequence
from velocity.data.parse import parse
from velocity.data.records import Text
from velocity.data.store import Block, SequenceStore
from velocity.errors import JobError

BOS, EOS = 1, 2
FACTS = TokenFacts(bos=BOS, wanted_bos=BOS, eos=EOS, special=frozenset({BOS, EOS}))
CHAT = EncodingRules(6, "assistant", "cut")
TEXT = EncodingRules(6, "all", "error")

Pairs = list[tuple[int, int]]  # (token, whether it is trained on)
GOOD: Pairs = [(BOS, 0), (7, 0), (8, 1), (EOS, 1), (9, 0)]
GOOD_TEXT: Pairs = [(BOS, 0), (7, 1), (8, 1)]


def block(*sequences: Pairs) -> Block:
    return block_of(*(sequence(*zip(*pairs, strict=True)) for pairs in sequences))


def block_of(*sequences: TokenSequence) -> Block:
    """They come from the first file and from the second in turn, from line 10 on."""
    made = Block.of(sequences, 0, range(10, 10 + len(sequences)))
    return replace(made, files=np.arange(len(sequences), dtype=np.int32) % 2)


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
        made = block_of(*Encoder(tokenizer, rules).encode(record))
        audit([made], token_facts(tokenizer), rules, ["a", "b"])


PAIRS, SINGLE = EncodingRules(6, "pairs", "cut"), EncodingRules(6, "answers", "cut")
GOOD_PAIR, GOOD_SINGLE = answered([BOS, 7], [8, EOS], [9, 8, EOS]), answered([BOS, 7], [8, EOS], desirable=False)
OPEN = "an assistant's turn does not end with a special token"


@pytest.mark.parametrize(
    ("rules", "bad", "says"),
    [
        (PAIRS, answered([BOS, 7], [8, EOS], [8, EOS]), "the chosen and the rejected answer are the same"),
        (PAIRS, answered([BOS, 7], [8, 8, 8, 8, EOS], [9, EOS]), "a sequence is longer than data.sequence_length"),
        (PAIRS, answered([BOS, 7], [9, EOS], [8, 8, 8, 8, EOS]), "a sequence is longer than data.sequence_length"),
        (PAIRS, answered([BOS, 7], [8, 8], [9, EOS]), OPEN),  # trained tokens follow, but of the other answer
        (PAIRS, answered([BOS, 7], [8, EOS], [9, 9]), OPEN),
        (PAIRS, answered([BOS, 7], [8, -7, EOS], [9, EOS]), OPEN),  # a turn within an answer
        (PAIRS, answered([BOS, BOS], [8, EOS], [9, EOS]), "a sequence begins with two BOS tokens"),
        (PAIRS, replace(answered([BOS, 7], [8, EOS], [9, EOS]), trained=np.ones(6, dtype=np.uint8)),
         "the first token of a sequence is trained on"),
        (SINGLE, answered([BOS, 7], [8, 8, 8, 8, EOS]), "a sequence is longer than data.sequence_length"),
        (SINGLE, answered([BOS, 7], [8, 8]), OPEN),
        (SINGLE, answered([BOS, BOS], [8, EOS]), "a sequence begins with two BOS tokens"),
    ],
)  # fmt: skip
def test_of_answers_too_an_invariant_that_is_broken_is_named_with_the_place_of_the_record(
    rules: EncodingRules, bad: TokenSequence, says: str
):
    good = GOOD_PAIR if rules is PAIRS else GOOD_SINGLE
    with pytest.raises(JobError) as caught:
        audit([block_of(good, good), block_of(good, bad, good)], FACTS, rules, ["a.jsonl", "b.jsonl"])
    [problem] = caught.value.problems
    assert (problem.what, problem.where) == (says, "b.jsonl:11")


@pytest.mark.parametrize(
    ("rules", "sequences"),
    [
        (PAIRS, [GOOD_PAIR, GOOD_PAIR]),
        (SINGLE, [GOOD_SINGLE, GOOD_SINGLE]),
        (PAIRS, [answered([BOS, 7], [8, 9, EOS], [9, 8, EOS])]),  # the same tokens in another order
        (PAIRS, [answered([BOS, 7], [8, 8, 8, EOS], [9, 9, 9, EOS])]),  # 2 + 4 are 6, though all together are 10
        (PAIRS, [answered([BOS, 7], [8, 8, 8, 8], [9, 9, 9, 9])]),  # cut: as long as a prompt with an answer may be
        (PAIRS, [answered([BOS, 7], [8, EOS, -7, EOS], [9, EOS])]),  # an answer of two turns
        (SINGLE, [answered([BOS, 7], [8, 8, 8, 8])]),
        (SINGLE, [GOOD_SINGLE, answered([BOS, 7], [8, EOS])]),  # an answer that is the one before it
        (PAIRS, [answered([7, 7], [8, EOS], [9, EOS])]),  # a chat's BOS is its template's affair
    ],
)
def test_answers_that_hold_pass(rules: EncodingRules, sequences: list[TokenSequence]):
    audit([block_of(*sequences)], FACTS, rules, ["a.jsonl", "b.jsonl"])


@pytest.mark.parametrize("answers", [([8, 8], [9, 9, 9, EOS]), ([8, 8, 8, EOS], [9, 9])])
def test_the_open_end_of_an_answer_is_not_hidden_by_the_other_one_that_fills_its_row(answers: tuple[list[int], ...]):
    with pytest.raises(JobError, match="does not end with a special token"):
        audit([block_of(answered([BOS, 7], *answers))], FACTS, PAIRS, ["a", "b"])


@pytest.mark.parametrize("name", ["smollm2", "llama3", "qwen2_5", "qwen3", "mistral", "mistral-v1"])
@pytest.mark.parametrize("train_on", ["pairs", "answers"])
@pytest.mark.parametrize("length", [512, 48])  # 48: prompt and answers are cut
def test_what_the_encoder_makes_of_answers_passes(name: str, train_on: str, length: int):
    tokenizer = tiny_tokenizer(name, add_bos=name.startswith(("llama3", "mistral")))
    rules = EncodingRules(length, train_on, "cut")
    record = parse({"prompt": "Why is it so? " * 3, "chosen": "A flaw. " * 9, "rejected": "No."}, None, {})
    made = Encoder(tokenizer, rules).encode(record)
    assert any(each.cut for each in made) is (length == 48)
    audit([block_of(*made)], token_facts(tokenizer), rules, ["a", "b"])


def store(folder: Path, lengths: list[int], trained: int) -> SequenceStore:
    masks = np.split(np.arange(sum(lengths)) < trained, np.cumsum(lengths)[:-1])
    return write_store(folder, [sequence([7] * len(mask), mask.tolist()) for mask in masks])


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
