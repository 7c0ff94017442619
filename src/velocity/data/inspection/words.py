"""Texts as hashes of their words and of runs of these. Pure; the same in every process."""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

# Scripts that put no space between words: Thai to Burmese, Khmer, kana, Chinese characters. A letter is a word there.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
_WORD, _TOKEN = re.compile(r"\w+"), re.compile(r"\w+|[^\w\s]")
_FACTOR, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xFF51AFD7ED558CCD)  # odd; the second is MurmurHash3's
_SHIFT = np.uint64(33)
_MOST = 1 << 20  # words that are remembered


def words(text: str) -> list[str]:
    """The words in lower case, without punctuation."""
    return _WORD.findall(_spaced(text))


def tokens(text: str) -> list[str]:
    """Words in lower case and, one by one, what is neither letter nor space: in code those make the difference."""
    return _TOKEN.findall(_spaced(text))


def _spaced(text: str) -> str:
    return _UNSPACED.sub(r" \g<0> ", text.casefold())


class _Known(dict[str, int]):
    """Hashes of words; each is computed once."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST:
            self.clear()
        self[word] = found = int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")
        return found


_known = _Known()


def hashes(found: Sequence[str]) -> Hashes:
    """A hash of each word."""
    return np.fromiter(map(_known.__getitem__, found), dtype=np.uint64, count=len(found))


def runs(hashes_N: Hashes, length: int) -> Hashes:  # noqa: N803 - shape letters
    """The hashes of all runs of so many words, each once, sorted; none where there are fewer words."""
    count = len(hashes_N) - length + 1
    if count < 1:
        return np.zeros(0, dtype=np.uint64)
    sums = np.full(count, length, dtype=np.uint64)
    for start in range(length):
        sums = sums * _FACTOR + hashes_N[start : start + count]  # wraps around
    return np.unique(mixed(sums))


def mixed(values: Hashes) -> Hashes:
    """The values with every bit depending on every other: the end of MurmurHash3."""
    values = (values ^ (values >> _SHIFT)) * _MIX
    result: Hashes = values ^ (values >> _SHIFT)
    return result


def whole(hashes_N: Hashes) -> int:  # noqa: N803 - shape letters
    """A hash of all words in their order."""
    return int.from_bytes(blake2b(hashes_N.tobytes(), digest_size=8).digest(), "little")
