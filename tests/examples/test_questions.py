"""Questions with four options: one true, three of siblings and not true, and neither place nor length tells which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from entities import Entity, Passage, Question, Section, Split, split_of
from questions import OPTIONS, as_chats, as_pairs, choices


def ids(split: Split, count: int) -> list[str]:
    """Return the first ids of weaknesses of a split."""
    return [f"CWE-{n}" for n in range(100, 99999) if split_of(f"CWE-{n}") == split][:count]


def words(letter: str, count: int) -> str:
    """Return so many words that no other letter has, the last of which ends a sentence."""
    return " ".join(f"{letter}{place:03d}" for place in range(count)) + "."


def entity(me: str, line: str, *more: Question, kin: Sequence[str] = ("CWE-1",)) -> Entity:
    """Return an entity of which the line is told, and what more questions tell."""
    what = Question("what", f"What is {me}?", f"{me} is", line)
    told = (Passage(line), *(passage for question in more for passage in question.passages))
    return Entity(me, f"Flaw of {line[:5]}", (Section("", told),), (what, *more), tuple(kin))


def many(count: int, split: Split = "train", least: int = 8) -> list[Entity]:
    """Return siblings whose descriptions have from `least` words to twice as many."""
    return [
        entity(me, words(chr(97 + place % 26) + str(place // 26), least + place * 5 % least))
        for place, me in enumerate(ids(split, count))
    ]


def technique(me: str, letter: str, **lists: Sequence[str]) -> Entity:
    """Return a technique with lists of tactics, mitigations and kinds of data."""
    told = (Question(kind, f"{kind} of {me}?", "It is", "a list.", items=tuple(items)) for kind, items in lists.items())
    return entity(me, words(letter, 9), *told, kin=("Execution",))


def asked(entities: Sequence[Entity], others: Sequence[Entity] | None = None, kind: str = "") -> list[dict[str, Any]]:
    rows = choices(entities, others or entities, true=lambda _: True, false=lambda _: True)
    return [row for row in rows if f"/{kind}" in row["id"]]


def true_of(row: dict[str, Any]) -> str:
    return str(row["choices"][row["answer"]])


def test_the_true_option_is_the_entitys_own_and_the_others_are_siblings():
    group = many(12)
    lines = {one.id: one.questions[0].line for one in group}
    rows = asked(group, kind="definition")
    assert len(rows) == 12
    for row in rows:
        me = row["id"].partition("/")[0]
        assert true_of(row) == lines[me]
        assert len(set(row["choices"])) == OPTIONS
        assert set(row["choices"]) <= set(lines.values())
        assert me in row["prompt"]


def test_a_name_is_asked_for_by_the_description_unless_that_says_it():
    group = many(6)
    rows = asked(group, kind="name")
    assert {true_of(row) for row in rows} == {one.name for one in group}
    telling = entity("CWE-77", f"Flaw of Flaw {words('z', 9)}")
    assert telling.name in telling.questions[0].line
    assert not asked([telling], [telling, *group], kind="name")


def test_what_is_true_of_the_entity_as_well_is_no_wrong_option():
    group = [technique("T1", "a", tactic=["Execution", "Impact"]), *(
        technique(f"T{n}", letter, tactic=tactics)
        for n, letter, tactics in ((2, "b", ["Impact"]), (3, "c", ["Discovery"]), (4, "d", ["Exfiltrate"]),
                                   (5, "e", ["Execution"]), (6, "f", ["Collection"]))
    )]  # fmt: skip
    rows = asked(group[:1], group, kind="tactic")
    assert {true_of(row) for row in rows} == {"Execution", "Impact"}
    for row in rows:
        assert set(row["choices"]) - {true_of(row)} == {"Discovery", "Exfiltrate", "Collection"}


def test_of_a_long_list_what_the_fewest_entities_share_is_asked_for():
    common, rare = ["Process", "Command", "Network"], "Firmware"
    group = [technique(f"T{n}", a, detection=[*common, f"Sensor {a}"]) for n, a in enumerate("bcdefg", 2)]
    rows = asked([technique("T1", "a", detection=[*common, rare])], group, kind="detection")
    assert rare in {true_of(row) for row in rows}
    assert len(rows) == 2


def test_with_fewer_than_three_siblings_others_of_the_catalogue_fill_in_and_with_none_nothing_is_asked():
    lonely = entity("CWE-77", words("z", 12), kin=("CWE-2",))
    strangers = many(5)
    assert len(asked([lonely], [lonely, *strangers], kind="definition")) == 1
    assert not asked([lonely], [lonely, *strangers[:2]], kind="definition")
    mitigations = [entity(f"M{n}", words(letter, 9)) for n, letter in enumerate("abcd")]
    assert not asked([lonely], [lonely, *mitigations], kind="definition")


@pytest.mark.parametrize(("count", "fits"), [(13, False), (14, True), (28, True), (29, False)])
def test_a_sentence_has_between_0_7_and_1_4_times_the_true_ones_length(count: int, fits: bool):
    first = entity("CWE-77", words("a", 20))  # of 20 words of five characters, 14 to 28 fit
    others = [entity(me, words(letter, count)) for me, letter in zip(ids("train", 3), "bcd", strict=True)]
    assert bool(asked([first], [first, *others], kind="definition")) is fits


def test_the_place_the_shortest_and_the_longest_option_are_right_in_a_quarter():
    rows = asked(many(400), kind="definition")
    assert len(rows) > 390
    near = 3 * (0.25 * 0.75 / len(rows)) ** 0.5  # three standard deviations of as many throws: 0.065
    places = Counter(row["answer"] for row in rows)
    assert all(abs(places[place] / len(rows) - 0.25) < near for place in range(OPTIONS))
    for pick in (min, max):
        # where two are of one length neither tells: such a row counts by halves
        right = sum(
            (len(true_of(row)) == pick(map(len, row["choices"]))) / Counter(map(len, row["choices"]))[len(true_of(row))]
            for row in rows
        )
        assert abs(right / len(rows) - 0.25) < 2 * near, pick  # at the ends of the lengths there is none beyond


def test_the_same_entities_give_the_same_questions_in_whatever_order_the_others_come():
    group = many(20)
    assert asked(group) == asked(group, group[::-1])


def test_only_passages_that_are_kept_are_options():
    def stopped(me: str, letter: str) -> Question:
        told = (Passage("drop it now."), Passage(words(letter, 20)))
        return Question("mitigation", f"Stop {me}?", "So:", passages=told)

    named = zip(ids("train", 6), "abcdef", "uvwxyz", strict=True)
    group = [entity(me, words(line, 9), stopped(me, stop)) for me, line, stop in named]
    keep = lambda passage: not passage.body.startswith("drop")  # noqa: E731
    rows = [row for row in choices(group, group, true=keep, false=keep) if "/mitigation/" in row["id"]]
    assert len(rows) == 6
    assert all("drop" not in option for row in rows for option in row["choices"])


def test_chats_answer_each_question_once_with_the_text_of_the_true_option():
    rows = asked(many(30), kind="definition")
    chats = list(as_chats(rows))
    turns = [turn for chat in chats for turn in chat["messages"]]
    told = {one["content"]: other["content"] for one, other in zip(turns[::2], turns[1::2], strict=True)}
    assert told == {row["prompt"]: true_of(row) for row in rows}
    assert {len(chat["messages"]) for chat in chats[:-1]} == {8}  # four questions and their answers
    assert {turn["role"] for turn in turns[::2]} == {"user"}


def test_pairs_set_the_true_option_against_each_wrong_one():
    rows = asked(many(30), kind="definition")
    pairs = list(as_pairs(rows))
    assert len({pair["id"] for pair in pairs}) == len(pairs) == 3 * len(rows)
    by_prompt = {row["prompt"]: row for row in rows}
    for pair in pairs:
        row = by_prompt[pair["prompt"]]
        assert pair["chosen"] == true_of(row)
        assert pair["rejected"] in set(row["choices"]) - {true_of(row)}
    assert len({(pair["prompt"], pair["rejected"]) for pair in pairs}) == len(pairs)
