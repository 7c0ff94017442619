"""Preference pairs of tiny entities: a sibling's answer in the asked entity's name, of like length, and not true."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from entities import Entity, Passage, Question, Section, Split, split_of
from overlap import said_by_few
from preferences import preferences
from sources import CWE_XML, read_member
from techniques import techniques
from weaknesses import weaknesses


def everything(_: Passage) -> bool:
    return True


def ids(split: Split, count: int) -> list[str]:
    """Return the first ids of a split."""
    return [f"CWE-{n}" for n in range(100, 9999) if split_of(f"CWE-{n}") == split][:count]


def words(letter: str, count: int) -> str:
    """Return so many words of five letters, the last of which ends a sentence: as many times six characters."""
    return " ".join(f"{letter}{place:04d}" for place in range(count)) + "."


def entity(me: str, line: str, *more: Question, name: str = "", kin: Sequence[str] = ("CWE-1",)) -> Entity:
    """Return a weakness of which the line is told, and what more questions tell, as a reader makes it."""
    name = name or f"Flaw of {line[:5]}"
    what = Question("what", f"What is {me}?", f"{me} is {name}.", line, closing="It is a kind of CWE-1 (Flaw).")
    told = (Passage(line), *(passage for question in more for passage in question.passages))
    return Entity(me, name, (Section("", told),), (what, *more), tuple(kin))


def pairs(*entities: Entity, kind: str = "what", others: Sequence[Entity] = ()) -> dict[str, dict[str, str]]:
    """Return the pairs of one kind of question, by the asked entity's id."""
    found = preferences(entities, others or entities, true=everything, false=everything)
    return {pair["id"].split("/")[0]: pair for pair in found if pair["id"].split("/")[1] == kind}


def stopped(me: str, *bodies: str) -> Question:
    """Return the question of what stops a weakness."""
    return Question("mitigation", f"What stops {me}?", f"Against {me}:", passages=tuple(map(Passage, bodies)))


A, B, C, D = ids("train", 4)


def test_the_rejected_answer_says_of_the_asked_entity_what_is_true_of_a_sibling() -> None:
    found = preferences(
        [entity(A, words("a", 9), name="Leak")],
        [entity(B, words("b", 9), name="Crash")],
        true=everything,
        false=everything,
    )
    assert list(found) == [
        {
            "id": f"{A}/what/{B}",
            "prompt": f"What is {A}?",
            "chosen": f"{A} is Leak. {words('a', 9)} It is a kind of CWE-1 (Flaw).",
            "rejected": f"{A} is Leak. {words('b', 9)} It is a kind of CWE-1 (Flaw).",
        }
    ]


def test_the_siblings_name_and_id_become_those_of_the_asked_entity() -> None:
    first = entity(A, f"Leak or {A} is {words('a', 9)}", name="Leak")
    second = entity(B, f"crash or {B} is {words('b', 9)} See {B}0.", name="Crash")
    assert pairs(first, second)[A]["rejected"].startswith(f"{A} is Leak. Leak or {A} is b0000")
    assert pairs(first, second)[A]["rejected"].endswith(f"See {B}0. It is a kind of CWE-1 (Flaw).")


@pytest.mark.parametrize("use", ["A crash", "They may crash", "Crashed", "crash.exe", "Crash (C)"])
def test_a_name_that_would_not_read_well_in_the_others_place_is_not_changed(use: str) -> None:
    plain, bent = entity(A, f"Leak {words('a', 9)}", name="Leak"), entity(B, f"{use} {words('b', 9)}", name="Crash")
    assert not pairs(plain, bent)
    assert set(pairs(plain, entity(B, f"Crash {words('b', 9)}", name="Crash"))) == {A, B}
    assert not pairs(plain, entity(B, f"Bugs {words('b', 9)}", name="Bugs"))  # one is, many are


def test_both_answers_repeat_the_name_or_neither_does() -> None:
    plain, repeating = entity(A, words("a", 9), name="Leak"), entity(B, f"Crash {words('b', 9)}", name="Crash")
    assert not pairs(plain, repeating)


def test_an_answer_that_speaks_of_the_asked_entity_is_not_rejected() -> None:
    first, second = entity(A, words("a", 9), name="Leak"), entity(B, f"{words('b', 8)} As a leak.", name="Crash")
    assert set(pairs(first, second)) == {B}


def test_only_those_who_share_kin_are_paired() -> None:
    families = [("CWE-1", "CWE-2"), ("CWE-2",), ("CWE-3",), ("CWE-4", "CWE-3")]
    every = [
        entity(me, words(letter, 9), kin=kin) for me, letter, kin in zip((A, B, C, D), "abcd", families, strict=True)
    ]
    assert [pair["id"] for pair in pairs(*every).values()] == [
        f"{A}/what/{B}",
        f"{B}/what/{A}",
        f"{C}/what/{D}",
        f"{D}/what/{C}",
    ]


def test_kin_of_a_weakness_are_its_parents(wheels: dict[str, Path]) -> None:
    assert {found.kin for found in weaknesses(read_member(wheels["cwe"], CWE_XML))} == {("CWE-1",)}


def test_kin_of_a_technique_are_its_tactics_and_its_parent_and_mobile_ones_are_apart() -> None:
    def value(me: str, phase: str, **more: Any) -> dict[str, Any]:
        meta = {"external_id": me, "kill_chain": [phase]}
        return {"uuid": me, "value": f"Way - {me}", "description": "They do.", "meta": meta, **more}

    under = [{"dest-uuid": "T1", "type": "subtechnique-of"}]
    patterns = [
        value("T1", "attack-Linux:initial-access"),
        value("T1.001", "attack-Linux:impact", related=under),
        value("T2", "mobile-attack-iOS:impact"),
    ]
    stops = {"uuid": "M1", "value": "Lock - M1", "description": "Lock it.", "meta": {"external_id": "M1"}}
    found = techniques(*(json.dumps({"values": values}).encode() for values in (patterns, [stops], [])))
    assert {each.id: each.kin for each in found} == {
        "T1": ("Initial Access",),
        "T1.001": ("Impact", "T1"),
        "T2": ("mobile Impact",),
        "M1": ("ATT&CK's mitigations",),
    }


@pytest.mark.parametrize("relation", ["parent", "child", "namesake", "twin"])
def test_parent_child_namesake_and_twin_are_no_siblings(relation: str) -> None:
    stops = stopped(B, words("y", 20))
    other = {
        "parent": entity(B, words("b", 9), stops),
        "child": entity(B, words("b", 9), stops, kin=("CWE-1", A)),
        "namesake": entity(B, words("b", 9), stops, name="Leak"),
        "twin": entity(B, f"b0000 {words('a', 9)}", stops),
    }[relation]
    kin = ("CWE-1", B) if relation == "parent" else ("CWE-1",)
    asked = entity(A, words("a", 9), stopped(A, words("x", 20)), name="Leak", kin=kin)
    sibling = entity(B, words("b", 9), stops)
    for kind in ("what", "mitigation"):
        assert not pairs(asked, others=[other], kind=kind)
        assert pairs(asked, others=[sibling], kind=kind) or relation == "parent"


@pytest.mark.parametrize(("count", "fits"), [(13, False), (14, True), (28, True), (29, False)])
def test_the_rejected_body_has_between_0_7_and_1_4_times_the_length(count: int, fits: bool) -> None:
    first, second = entity(A, words("a", 20)), entity(B, words("b", count))  # 20 words: 14 to 28 of them fit
    assert (A in pairs(first, second)) is fits


def test_neither_answer_is_longer_than_700_characters() -> None:
    long, short = entity(A, words("a", 120)), entity(B, words("b", 95))  # 720 and 570 characters without the opening
    assert not pairs(long, short)


def test_the_longer_answer_is_the_chosen_one_in_about_half_of_the_pairs() -> None:
    many = [
        entity(me, words(chr(97 + i % 26) + str(i // 26), 10 + i * 7 % 31)) for i, me in enumerate(ids("train", 200))
    ]
    found = pairs(*many).values()
    longer = sum(len(pair["chosen"]) > len(pair["rejected"]) for pair in found)
    shorter = sum(len(pair["chosen"]) < len(pair["rejected"]) for pair in found)
    assert len(found) > 150
    assert 0.4 < longer / (longer + shorter) < 0.6  # 0.5 and three standard deviations of 200 throws of a coin


def test_what_two_siblings_both_say_is_no_pair() -> None:
    shared, own = words("s", 20), words("o", 20)
    first, second = (
        entity(A, words("a", 9), stopped(A, shared)),
        entity(B, words("b", 9), stopped(B, f"z0000 {shared}")),
    )
    assert not pairs(first, second, kind="mitigation")
    third = entity(C, words("c", 9), stopped(C, own))
    assert pairs(first, second, third, kind="mitigation")[A]["id"] == f"{A}/mitigation/{C}"


def test_only_passages_that_are_kept_are_told_of_either() -> None:
    first = entity(A, words("a", 9), stopped(A, "drop", words("p", 20)))
    second = entity(B, words("b", 9), stopped(B, words("q", 20), "drop"))
    found = preferences([first], [second], true=lambda p: p.body != "drop", false=lambda p: p.body != "drop")
    mitigation = next(pair for pair in found if "/mitigation/" in pair["id"])
    assert mitigation["chosen"] == f"Against {A}:\n- {words('p', 20)}"
    assert mitigation["rejected"] == f"Against {A}:\n- {words('q', 20)}"


def seen_in(me: str, letter: str, items: str) -> Entity:
    ask, line = f"What shows {me}?", f"{', '.join(items)}."
    return entity(me, words(letter, 9), Question("detection", ask, f"{me} shows in:", line, items=tuple(items)))


@pytest.mark.parametrize(("items", "fits"), [("XYZ", True), ("AYZ", True), ("ABYZ", False), ("BCA", False)])
def test_a_list_is_rejected_only_when_at_most_a_third_of_it_is_true(items: str, fits: bool) -> None:
    assert (A in pairs(seen_in(A, "a", "ABC"), seen_in(B, "b", items), kind="detection")) is fits


def test_what_is_often_true_of_siblings_is_not_asked() -> None:
    effects: dict[str, Any] = {"kind": "effect", "opening": "It leads to", "common": True}
    first = entity(A, words("a", 9), Question(ask=f"What does {A} do?", line=words("x", 9), **effects))
    second = entity(B, words("b", 9), Question(ask=f"What does {B} do?", line=words("y", 9), **effects))
    assert not pairs(first, second, kind="effect")
    assert len(pairs(first, second)) == 2


def test_where_the_name_is_the_answer_it_stays_and_must_not_stand_in_the_question() -> None:
    def named(me: str, name: str, letter: str, description: str) -> Entity:
        which = Question("which", f"Which flaw is this? {description}", "This is", f"{me}: {name}.")
        return entity(me, words(letter, 9), which, name=name)

    first, second = named(A, "Leak", "a", "Data flows out."), named(B, "Crash", "b", "A crash ends it.")
    found = pairs(first, second, kind="which")
    assert set(found) == {A}  # the question about B names it
    assert (found[A]["chosen"], found[A]["rejected"]) == (f"This is {A}: Leak.", f"This is {B}: Crash.")


def test_an_entity_of_which_nothing_is_told_has_no_pair() -> None:
    assert not pairs(entity(A, "Test"), entity(B, "Else"))


def test_the_order_of_the_entities_does_not_matter_and_a_hash_picks_the_sibling() -> None:
    many = [entity(me, words(chr(97 + i), 9)) for i, me in enumerate(ids("train", 20))]
    found = pairs(*many)
    assert pairs(*many, others=many[::-1]) == found
    assert len({pair["id"].split("/")[2] for pair in found.values()}) > 5


def test_a_sibling_of_the_same_split_comes_first() -> None:
    unseen = [entity(me, words(letter, 9)) for me, letter in zip(ids("unseen", 2), "ab", strict=True)]
    train = [entity(me, words(letter, 9)) for me, letter in zip(ids("train", 9), "cdefghijk", strict=True)]
    assert [pair["id"].split("/")[2] for pair in pairs(*unseen, others=train + unseen).values()] == [
        unseen[1].id,
        unseen[0].id,
    ]
    assert len(pairs(*unseen, others=train)) == 2


def test_boilerplate_with_small_changes_and_short_labels_are_not_said_by_few() -> None:
    said = [f"In the case of {word} {words('s', 60)}" for word in ("one", "two", "three", "four")]
    sayers = [entity(me, body) for me, body in zip((A, B, C, D), said, strict=True)]
    assert not said_by_few(sayers)(Passage(said[0]))
    assert said_by_few(sayers[:3])(Passage(said[0]))
    assert not said_by_few([])(Passage("Validate input."))
