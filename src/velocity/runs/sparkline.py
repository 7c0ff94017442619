"""A curve as a line of blocks, for terminals and tables. It knows no run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 60


def sparkline(values: Sequence[float | None]) -> str:
    """At most 60 blocks, each the mean of its share of the values, between the lowest and the highest of them.

    None stands for a value that was not finite; a share of such alone is a space.
    """
    width = min(WIDTH, len(values))
    edges = [round(i * len(values) / width) for i in range(width + 1)]
    shares = [[value for value in values[a:b] if value is not None] for a, b in itertools.pairwise(edges)]
    means = [sum(share) / len(share) if share else None for share in shares]
    known = [mean for mean in means if mean is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1.0
    return "".join(" " if mean is None else BLOCKS[round((mean - low) / span * (len(BLOCKS) - 1))] for mean in means)
