"""Scores of the words that two answers share, as SQuAD has them (Rajpurkar et al. 2016, arXiv 1606.05250)."""

from __future__ import annotations

import re
import string
from collections import Counter

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def plain(text: str) -> str:
    """The text in lower case, without punctuation, articles and spaces beyond one."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def exact_match(completion: str, reference: str) -> float:
    """1 where both are the same once they are plain, else 0."""
    return float(plain(completion) == plain(reference))


def f1(completion: str, reference: str) -> float:
    """The harmonic mean of the share of our words that are known and of known words that are ours."""
    ours, theirs = plain(completion).split(), plain(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs))
