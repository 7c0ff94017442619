"""Pairs the true answer about an entity with what is true of a sibling only. Knows no source and no file."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

from entities import Entity, Question, split_of
from overlap import Keep, runs_of

MOST_CHARACTERS = 700  # of an answer: with its question it stays well below 512 tokens
LEAST_CHARACTERS = 20  # of a description: one entry of ATT&CK says "Test"
LEAST_RATIO, MOST_RATIO = 0.7, 1.4  # of the rejected body's length to the chosen one's
RUN_WORDS, ALIKE = 3, 0.3  # when more of a text's runs of words stand in another, the two say much the same
TRUE_ITEMS = 1 / 3  # of a rejected list: lists without any would betray themselves by naming what is rare


@dataclass(frozen=True)
class _Truth:
    """A question with the body of its true answer, and the runs of words in all that its entity's text says."""

    entity: Entity
    question: Question
    body: str
    known: frozenset[str]

    @property
    def names_its_entity(self) -> bool:
        """Whether the question names the entity; else its name is the answer."""
        return self.entity.id in self.question.ask


def preferences(
    asked: Iterable[Entity], others: Iterable[Entity], *, true: Keep, false: Keep
) -> Iterator[dict[str, str]]:
    """Yield {"id", "prompt", "chosen", "rejected"} of each question to which one of the others has a fitting answer.

    The rejected answer says of the entity what is true of a sibling; its id is the last part of the pair's. `true` and
    `false` select the passages of chosen and of rejected answers.
    """
    families = defaultdict[str, list[Entity]](list)
    for other in others:
        for name in other.kin:
            families[name].append(other)
    for entity in asked:
        siblings = _siblings(entity, families)
        for truth in _truths(entity, true):
            yield from islice(_pairs(truth, siblings, false), 1)


def _siblings(entity: Entity, families: Mapping[str, Sequence[Entity]]) -> list[Entity]:
    """Return who shares kin with the entity and is neither above it, below it nor its twin: by hash, own split first.

    Whoever read the texts of one split knows both answers of a pair within it, or neither.
    """

    def order(other: Entity) -> tuple[bool, str]:
        pair = hashlib.sha1(f"{entity.id} {other.id}".encode(), usedforsecurity=False).hexdigest()
        return split_of(other.id) != split_of(entity.id), pair

    def is_sibling(other: Entity) -> bool:
        in_line = other.id == entity.id or other.id in entity.kin or entity.id in other.kin
        return not in_line and other.name != entity.name and not _alike(_description(other), description)

    description = _runs(_description(entity))
    found = {other.id: other for name in entity.kin for other in families.get(name, ())}
    return sorted(filter(is_sibling, found.values()), key=order)


def _truths(entity: Entity, keep: Keep) -> Iterator[_Truth]:
    """Yield the questions whose answer is short, tells the entity from siblings and does not stand in the question."""
    if len(_description(entity)) < LEAST_CHARACTERS:
        return
    known = frozenset().union(*map(_runs, [_description(entity), *(p.body for p in entity.statements())]))
    for question in entity.questions:
        truth = _Truth(entity, question, question.body(keep), known)
        given_away = not truth.names_its_entity and _mentions(question.ask, entity)
        if truth.body and _is_short(question.worded(truth.body)) and not (question.common or given_away):
            yield truth


def _pairs(truth: _Truth, siblings: Iterable[Entity], keep: Keep) -> Iterator[dict[str, str]]:
    """Yield the pair of the true answer with each sibling's that fits."""
    for other in siblings:
        for same in (question for question in other.questions if question.kind == truth.question.kind):
            body = same.body(keep)
            said = _in_its_name(body, other, truth) if truth.names_its_entity else body
            if _fits(said, truth) and _is_false(said, same, truth):
                yield {
                    "id": f"{truth.entity.id}/{same.kind}/{other.id}",
                    "prompt": truth.question.ask,
                    "chosen": truth.question.worded(truth.body),
                    "rejected": truth.question.worded(said),
                }


def _fits(said: str, truth: _Truth) -> bool:
    return LEAST_RATIO <= len(said) / len(truth.body) <= MOST_RATIO and _is_short(truth.question.worded(said))


def _is_false(said: str, same: Question, truth: _Truth) -> bool:
    """Whether what is said of a sibling is not true of the entity as well, as far as its text and its lists tell."""
    named = [item for item in same.items if item in said]
    right = sum(item in truth.question.items for item in named)
    return right <= TRUE_ITEMS * len(named) and (bool(named) or not _alike(said, truth.known))


def _in_its_name(said: str, other: Entity, truth: _Truth) -> str:
    """Return what is said of the other with the name and id of the truth's entity instead, or nothing.

    It is nothing where it speaks of that entity already, where just one of it and the true body repeats the name that
    it is about, which alone would tell them apart, or where one name does not read well in the other's place.
    """
    entity, repeats = truth.entity, _mentions(said, other)
    if _mentions(said, entity) or repeats != _mentions(truth.body, entity):
        return ""
    same_number = other.name.endswith("s") == entity.name.endswith("s")
    if repeats and not (same_number and _stands_alone(other.name, said) and _stands_alone(entity.name, truth.body)):
        return ""
    said = _pattern(rf"{re.escape(other.id)}(?!\.?\d)").sub(entity.id, said)
    return _pattern(rf"(?<!\w){re.escape(other.name)}").sub(lambda _: entity.name, said)


def _stands_alone(name: str, text: str) -> bool:
    """Whether the text uses the name as a name, not as in `a server`, `may brute force`, `servers` or `emond.exe`."""
    name = rf"(?<!\w){re.escape(name)}"
    return not _pattern(rf"\b(?:an?|can|may|to) {name}|{name}(?:[\w/-]| \(|\.\w)").search(text)


def _mentions(text: str, entity: Entity) -> bool:
    return _pattern(rf"(?<!\w){re.escape(entity.name)}|{re.escape(entity.id)}(?!\.?\d)").search(text) is not None


@cache
def _pattern(expression: str) -> re.Pattern[str]:
    """Return the expression compiled, whatever the case: the cache of `re` is too small for all the names."""
    return re.compile(expression, re.IGNORECASE)


def _description(entity: Entity) -> str:
    return next(question.line for question in entity.questions if question.kind == "what")


def _is_short(answer: str) -> bool:
    return len(answer) <= MOST_CHARACTERS


def _alike(text: str, known: frozenset[str]) -> bool:
    """Whether so many of the text's runs are among the known ones that it says little of its own."""
    runs = _runs(text)
    return len(runs & known) > ALIKE * len(runs)


@cache
def _runs(text: str) -> frozenset[str]:
    return frozenset(runs_of(text, RUN_WORDS))
