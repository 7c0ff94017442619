"""Which sequences an epoch sees, and in which order. Pure: a function of sizes, weights, seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from velocity.data.pack import Indices


def epoch_indices(sizes: Sequence[int], weights: Sequence[float], seed: int, epoch: int) -> Indices:
    """Indices into the sources laid end to end, shuffled.

    A weight of 2.5 sees every sequence twice and half of them once more; which half moves on from epoch to epoch. Of a
    share at least one is seen: no source is left out.
    """
    parts = []
    offset = 0
    for source, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
        whole, share = int(weight), weight - int(weight)
        parts += [np.arange(size)[:, None].repeat(whole, axis=1).ravel() + offset]
        if share:
            extra = max(1, round(share * size))
            order = np.random.default_rng([seed, source]).permutation(size)
            parts.append(np.take(order, np.arange(epoch * extra, (epoch + 1) * extra), mode="wrap") + offset)
        offset += size
    indices = np.concatenate(parts)
    return np.random.default_rng([seed, len(sizes), epoch]).permutation(indices)
