"""Makes questions with four options: one is true, the others are true of siblings. Knows no source and no file."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from entities import Entity, Question, lead
from overlap import Keep
from siblings import LEAST_CHARACTERS, alike, description, families_of, in_its_name, known_of, mentions, siblings

OPTIONS = 4
OPTION_WORDS = 40  # a longer one is cut to its first sentences: every option is scored, so they are what costs time
LONGEST_OPTION = 300  # characters: a single sentence may go on and on
EACH = 2  # at most so many questions of a kind about one entity: some are seen in a dozen kinds of data
TOGETHER = 4  # questions of a chat
ENOUGH = 12  # fitting wrong options among which lengths are balanced
LISTS = ("mitigation", "tactic", "detection")
NAMES, SENTENCES = (0.5, 2.0), (0.7, 1.4)  # least and most of an option's length to the true one's
ASKS = {
    "CWE": {
        "name": "Which weakness is this? {what}",
        "definition": "What is {id} ({name})?",
        "mitigation": "How can {id} ({name}) be prevented?",
    },
    "T": {
        "name": "Which ATT&CK technique is this? {what}",
        "definition": "What do adversaries do in {id} ({name})?",
        "mitigation": "Which mitigation does ATT&CK list for {id} ({name})?",
        "tactic": "Which tactic does the ATT&CK technique {id} ({name}) serve?",
        "detection": "Which data helps to detect {id} ({name})?",
    },
    "M": {
        "name": "Which ATT&CK mitigation is this? {what}",
        "definition": "What does the ATT&CK mitigation {id} ({name}) ask for?",
    },
}


@dataclass(frozen=True)
class _Asked:
    """A question about an entity and its true answer; `every` is all that is true of it, where that is a list."""

    entity: Entity
    kind: str
    prompt: str
    true: str
    every: frozenset[str]
    known: frozenset[str]

    @property
    def id(self) -> str:
        """What its options are drawn and ordered by."""
        return f"{self.entity.id}/{self.kind}/{self.true}"


def choices(asked: Iterable[Entity], others: Iterable[Entity], *, true: Keep, false: Keep) -> Iterator[dict[str, Any]]:
    """Yield {"id", "prompt", "choices", "answer"} of each question to which siblings give three fitting wrong options.

    Siblings come first, and where they are too few, any entity of the same catalogue. `true` and `false` select the
    passages of true and of wrong options. `answer` is the place of the true one.
    """
    others = list(others)
    families, areas = families_of(others), _areas(others)
    tellers = Counter(item for other in others for kind in LISTS for item in _told(other, kind, false))
    for entity in asked:
        if len(description(entity)) < LEAST_CHARACTERS:
            continue
        near = siblings(entity, families)
        for question, number in _asked(entity, true, tellers):
            wrong = list(islice(_wrong(question, near, false), ENOUGH))
            if len(wrong) < OPTIONS - 1:
                far = siblings(Entity(entity.id, entity.name, (), entity.questions, (_area(entity),)), areas)
                wrong += islice(_wrong(question, far, false, wrong), ENOUGH)
            if len(wrong) >= OPTIONS - 1:
                yield _row(f"{entity.id}/{question.kind}/{number}", question, wrong)


def _asked(entity: Entity, keep: Keep, tellers: Mapping[str, int]) -> Iterator[tuple[_Asked, int]]:
    """Yield what is asked about the entity, numbered within each kind; of a list what the fewest entities share."""
    known, what = known_of(entity), lead(description(entity), words=OPTION_WORDS)
    for kind, ask in ASKS[_catalogue(entity)].items():
        prompt = ask.format(id=entity.id, name=entity.name, what=what)
        if kind == "name" and mentions(what, entity):
            continue  # the answer would stand in the question
        told = sorted(_told(entity, kind, keep), key=lambda text: (tellers[text], drawn(f"{entity.id} {text}")))
        every = frozenset(_told(entity, kind, lambda _: True))
        for number, text in enumerate(told[:EACH]):
            yield _Asked(entity, kind, prompt, text, every, known), number


def _told(entity: Entity, kind: str, keep: Keep) -> list[str]:
    """Return the short answers that the entity gives to a kind of question."""
    if kind == "name":
        return [entity.name]
    if kind == "definition":
        return _short([description(entity)])
    found = [question for question in entity.questions if question.kind == kind]
    items = [item.partition(" (M")[0] for question in found for item in question.items]
    return list(dict.fromkeys(items or _short(_bodies(found, keep))))


def _bodies(questions: Iterable[Question], keep: Keep) -> list[str]:
    return [passage.body for question in questions for passage in question.passages if keep(passage)]


def _short(texts: Iterable[str]) -> list[str]:
    cut = (lead(text, words=OPTION_WORDS) for text in texts)
    return [text for text in cut if LEAST_CHARACTERS <= len(text) <= LONGEST_OPTION]


def _wrong(question: _Asked, others: Iterable[Entity], keep: Keep, had: Iterable[str] = ()) -> Iterator[str]:
    """Yield options of which each is true of another entity, not of the asked one, and has a fitting length."""
    given = {*had, question.true}
    is_sentence = question.kind == "definition" or question.true.endswith(".")
    least, most = SENTENCES if is_sentence else NAMES
    for other in others:
        for said in _told(other, question.kind, keep):
            if is_sentence:
                said = in_its_name(said, other, question.entity, question.true)
            fits = least <= len(said) / len(question.true) <= most
            false = said not in question.every and not (is_sentence and alike(said, question.known))
            if said not in given and fits and false:
                given.add(said)
                yield said
                break  # one of each, so that no other entity stands behind two options


def _row(row_id: str, question: _Asked, wrong: list[str]) -> dict[str, Any]:
    """Return the question with its options in an order by hash.

    The true one has none to three shorter ones beside it, by hash as well, as far as there are any: to take the
    shortest or the longest is right in a quarter of the questions.
    """
    draw = drawn(question.id)
    is_shorter: Callable[[str], bool] = lambda text: len(text) < len(question.true)  # noqa: E731
    shorter = [text for text in wrong if is_shorter(text)][: draw % OPTIONS]
    longer = [text for text in wrong if not is_shorter(text)][: OPTIONS - 1 - len(shorter)]
    rest = [text for text in wrong if text not in shorter + longer]
    taken = (shorter + longer + rest)[: OPTIONS - 1]
    options = sorted(taken, key=lambda text: drawn(f"{question.id} {text}"))
    answer = draw // OPTIONS % OPTIONS
    options.insert(answer, question.true)
    return {"id": row_id, "prompt": question.prompt, "choices": options, "answer": answer}


def as_chats(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield {"id", "messages"}: a few questions after each other, each with the text of its true option as the answer.

    By hash, so that they are about different things; together, so that what a template puts before a chat is computed
    once.
    """
    ordered = sorted(rows, key=lambda row: drawn(id_of(row)))
    for first in range(0, len(ordered), TOGETHER):
        group = ordered[first : first + TOGETHER]
        turns = [turn for row in group for turn in _turns(row)]
        yield {"id": id_of(group[0]), "messages": turns}


def as_pairs(rows: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield {"id", "prompt", "chosen", "rejected"} of each question's true option with each of its wrong ones."""
    for row in rows:
        for place, option in enumerate(row["choices"]):
            if place != row["answer"]:
                pair = {"prompt": row["prompt"], "chosen": _right(row), "rejected": option}
                yield {"id": f"{id_of(row)}/{place}", **pair}


def id_of(row: Mapping[str, Any]) -> str:
    """Return a question's id, or what is asked where it has none."""
    return str(row.get("id", row["prompt"]))


def _turns(row: Mapping[str, Any]) -> list[dict[str, str]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": _right(row)}]


def _right(row: Mapping[str, Any]) -> str:
    return str(row["choices"][row["answer"]])


def _catalogue(entity: Entity) -> str:
    return entity.id.partition("-")[0] if "-" in entity.id else entity.id[0]


def _area(entity: Entity) -> str:
    """Return the catalogue of an entity: mobile techniques have tactics and mitigations of their own."""
    mobile = any(name.startswith("mobile ") for name in entity.kin)
    return f"{_catalogue(entity)}{' mobile' * mobile}"


def _areas(entities: Iterable[Entity]) -> dict[str, list[Entity]]:
    found: dict[str, list[Entity]] = {}
    for entity in entities:
        found.setdefault(_area(entity), []).append(entity)
    return found


def drawn(text: str) -> int:
    """Return a number that only the text decides, as evenly spread as chance."""
    return int(hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest(), 16)
