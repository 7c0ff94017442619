"""The scores of a set of answers: the only place that matches on a score's name."""

from __future__ import annotations

from collections.abc import Sequence

from velocity.errors import UserError
from velocity.evaluation.scores import overlap, words
from velocity.evaluation.scores.function import function as user_function
from velocity.evaluation.scores.pattern import pattern as find_alike
from velocity.evaluation.scores.score import Score, best


def build_scores(names: Sequence[str], pattern: str | None = None, function: str | None = None) -> dict[str, Score]:
    """By name: the named ones, `pattern`, and the user's function under its own name.

    UserError where a library or the function is missing, or the function is named as another score is.
    """
    scores = {name: _named(name) for name in names}
    if pattern is not None:
        scores["pattern"] = find_alike(pattern)
    if function is not None:
        name = function.rpartition(":")[2]
        if name in scores:
            raise UserError(f"two scores are named {name}", f"function: {function}", "give the function another name")
        scores[name] = user_function(function)
    return scores


def _named(name: str) -> Score:
    match name:
        case "exact_match":
            return best(words.exact_match)
        case "f1":
            return best(words.f1)
        case "rouge_l":
            return overlap.rouge_l()
        case "chrf":
            return overlap.chrf()
        case _:
            raise UserError(f"there is no score {name}", "metrics", "choose exact_match, f1, rouge_l or chrf")
