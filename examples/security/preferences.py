"""Pairs the true answer about an entity with what is true of a sibling only. Knows no source and no file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from entities import Entity, Question
from overlap import Keep
from siblings import LEAST_CHARACTERS, alike, description, families_of, in_its_name, known_of, mentions, siblings

MOST_CHARACTERS = 700  # of an answer: with its question it stays well below 512 tokens
LEAST_RATIO, MOST_RATIO = 0.7, 1.4  # of the rejected body's length to the chosen one's
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
    families = families_of(others)
    for entity in asked:
        near = siblings(entity, families)
        for truth in _truths(entity, true):
            yield from islice(_pairs(truth, near, false), 1)


def _truths(entity: Entity, keep: Keep) -> Iterator[_Truth]:
    """Yield the questions whose answer is short, tells the entity from siblings and does not stand in the question."""
    if len(description(entity)) < LEAST_CHARACTERS:
        return
    known = known_of(entity)
    for question in entity.questions:
        truth = _Truth(entity, question, question.body(keep), known)
        given_away = not truth.names_its_entity and mentions(question.ask, entity)
        if truth.body and _is_short(question.worded(truth.body)) and not (question.common or given_away):
            yield truth


def _pairs(truth: _Truth, near: Iterable[Entity], keep: Keep) -> Iterator[dict[str, str]]:
    """Yield the pair of the true answer with each sibling's that fits."""
    for other in near:
        for same in (question for question in other.questions if question.kind == truth.question.kind):
            body = same.body(keep)
            said = in_its_name(body, other, truth.entity, truth.body) if truth.names_its_entity else body
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
    return right <= TRUE_ITEMS * len(named) and (bool(named) or not alike(said, truth.known))


def _is_short(answer: str) -> bool:
    return len(answer) <= MOST_CHARACTERS
