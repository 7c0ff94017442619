"""Siblings: entities so near to one that what is true of them is a fair wrong answer about it. Knows no file."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from entities import Entity, split_of
from overlap import runs_of

LEAST_CHARACTERS = 20  # of a description: one entry of ATT&CK says "Test"
RUN_WORDS, ALIKE = 3, 0.3  # when more of a text's runs of words stand in another, the two say much the same

Families = Mapping[str, Sequence[Entity]]


def families_of(entities: Iterable[Entity]) -> Families:
    """Return the entities by what they belong to."""
    families = defaultdict[str, list[Entity]](list)
    for entity in entities:
        for name in entity.kin:
            families[name].append(entity)
    return families


def siblings(entity: Entity, families: Families) -> list[Entity]:
    """Return who shares kin with the entity and is neither above it, below it nor its twin: by hash, own split first.

    Whoever read the texts of one split knows both answers of a pair within it, or neither.
    """

    def order(other: Entity) -> tuple[bool, str]:
        pair = hashlib.sha1(f"{entity.id} {other.id}".encode(), usedforsecurity=False).hexdigest()
        return split_of(other.id) != split_of(entity.id), pair

    def is_sibling(other: Entity) -> bool:
        in_line = other.id == entity.id or other.id in entity.kin or entity.id in other.kin
        return not in_line and other.name != entity.name and not alike(description(other), described)

    described = runs(description(entity))
    found = {other.id: other for name in entity.kin for other in families.get(name, ())}
    return sorted(filter(is_sibling, found.values()), key=order)


def known_of(entity: Entity) -> frozenset[str]:
    """Return the runs of words in all that the entity's text says."""
    return frozenset().union(*map(runs, [description(entity), *(p.body for p in entity.statements())]))


def in_its_name(said: str, other: Entity, entity: Entity, body: str) -> str:
    """Return what is said of the other with the name and id of the entity instead, or nothing.

    It is nothing where it speaks of that entity already, where just one of it and the true body repeats the name that
    it is about, which alone would tell them apart, or where one name does not read well in the other's place.
    """
    repeats = mentions(said, other)
    if mentions(said, entity) or repeats != mentions(body, entity):
        return ""
    same_number = other.name.endswith("s") == entity.name.endswith("s")
    if repeats and not (same_number and _stands_alone(other.name, said) and _stands_alone(entity.name, body)):
        return ""
    said = _pattern(rf"{re.escape(other.id)}(?!\.?\d)").sub(entity.id, said)
    return _pattern(rf"(?<!\w){re.escape(other.name)}").sub(lambda _: entity.name, said)


def _stands_alone(name: str, text: str) -> bool:
    """Whether the text uses the name as a name, not as in `a server`, `may brute force`, `servers` or `emond.exe`."""
    name = rf"(?<!\w){re.escape(name)}"
    return not _pattern(rf"\b(?:an?|can|may|to) {name}|{name}(?:[\w/-]| \(|\.\w)").search(text)


def mentions(text: str, entity: Entity) -> bool:
    """Whether the text names the entity, by name or id."""
    return _pattern(rf"(?<!\w){re.escape(entity.name)}|{re.escape(entity.id)}(?!\.?\d)").search(text) is not None


@cache
def _pattern(expression: str) -> re.Pattern[str]:
    """Return the expression compiled, whatever the case: the cache of `re` is too small for all the names."""
    return re.compile(expression, re.IGNORECASE)


def description(entity: Entity) -> str:
    """Return what the entity is, in a few sentences."""
    return next(question.line for question in entity.questions if question.kind == "what")


def alike(text: str, known: frozenset[str]) -> bool:
    """Whether so many of the text's runs are among the known ones that it says little of its own."""
    found = runs(text)
    return len(found & known) > ALIKE * len(found)


@cache
def runs(text: str) -> frozenset[str]:
    """Return the text's runs of a few words."""
    return frozenset(runs_of(text, RUN_WORDS))
