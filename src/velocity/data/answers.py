"""A prompt and the answers to it as tokens: the prompt tokenised once, as it will be at inference.

It knows no file and no objective. A pair that is too long loses the beginning of its prompt, never more of one answer
than of the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from velocity.data.records import Message, RecordError
from velocity.data.turns import Ids, Mask, Turns


@dataclass(frozen=True)
class Answer:
    """The tokens behind a prompt up to the one that ends the turn, and which of them are trained on."""

    ids: Ids
    trained: Mask


def encode_answers(
    turns: Turns, prompt: Sequence[Message], answers: Sequence[Sequence[Message]]
) -> tuple[Ids, list[Answer]]:
    """The prompt's ids, and each answer's; RecordError where the template does not let the prompt begin them all."""
    wholes = [turns.render([*prompt, *answer]) for answer in answers]
    text = turns.render(prompt, prompt=True)
    if not all(whole.startswith(text) for whole in wholes):
        text = turns.render(prompt)
    if not all(whole.startswith(text) for whole in wholes):
        raise RecordError("prompt", "the chat template does not render the prompt as the answer's beginning")
    ids = turns.ids(text)
    if not ids:
        raise RecordError("prompt", "the chat template renders the prompt as nothing")
    encoded = [
        _answer(turns, (text, ids), whole, _spans(turns, prompt, answer, whole, len(text)))
        for answer, whole in zip(answers, wholes, strict=True)
    ]
    return np.asarray(ids, dtype=np.int32), encoded


def _spans(
    turns: Turns, prompt: Sequence[Message], answer: Sequence[Message], whole: str, start: int
) -> list[tuple[int, int]]:
    """Where the assistant's turns of the answer stand in `whole`; the first begins where the prompt ends."""
    messages = [*prompt, *answer]
    spans = []
    for turn in range(len(prompt), len(messages)):
        if messages[turn]["role"] == "assistant":
            before, upto = turns.span(messages, turn, whole)
            if not whole.startswith(upto):
                raise RecordError(f"messages[{turn}]", "the chat template rewrites earlier turns of an answer")
            spans.append((start if turn == len(prompt) else len(before), len(upto)))
    return spans


def _answer(turns: Turns, prompt: tuple[str, list[int]], whole: str, spans: list[tuple[int, int]]) -> Answer:
    """The answer's tokens: those that follow the prompt's in the whole text, where its tokens begin with the prompt's.

    Where a token would stand across the border, which no model can write, the rest of the text is tokenised alone.
    """
    text, prompt_ids = prompt
    ids, trained = turns.masked(whole, spans)
    if ids[: len(prompt_ids)] == prompt_ids:
        ids, trained = ids[len(prompt_ids) :], trained[len(prompt_ids) :]
    else:
        ids, trained = turns.masked(whole[len(text) :], [(start - len(text), end - len(text)) for start, end in spans])
    length = int(np.flatnonzero(trained)[-1]) + 1  # what the template writes behind the turn's end is no answer
    return Answer(np.asarray(ids[:length], dtype=np.int32), trained[:length])


def fit(prompt: Ids, answers: Sequence[Answer], limit: int, bos: int | None) -> tuple[Ids, list[Answer]]:
    """Prompt and answers so that the prompt with each answer has at most `limit` tokens.

    First the prompt loses tokens behind its BOS, down to half of the limit; then all answers end at the same place.
    """
    longest = max(len(answer.ids) for answer in answers)
    room = max(limit - longest, limit // 2)
    if len(prompt) > room:
        head = prompt[: int(bos is not None and prompt[0] == bos)]
        prompt = np.concatenate([head, prompt[len(prompt) - room + len(head) :]])
    end = limit - len(prompt)
    return prompt, [Answer(answer.ids[:end], answer.trained[:end]) for answer in answers]
