"""An audit as lines for a person. Pure; it never says what a secret is."""

from __future__ import annotations

from collections.abc import Iterator

from velocity.config.audit import AuditConfig
from velocity.data.inspection.findings import TRAIN, Audit, Finding

SHOWN = 3  # places of each kind
NOTHING = {
    "duplicates": "no row twice",
    "overlap": "no evaluation text in training",
    "secrets": "no secret",
    "oddities": "no wrong encoding, no stray language",
}
MEANS = {
    "duplicates": "say what an earlier row says",
    "overlap": "have text in common with {other}",
    "secrets": "hold what looks like a secret",
    "oddities": "look wrong",
}


def lines_of(audit: Audit, config: AuditConfig) -> Iterator[str]:
    """What was looked for and found in each set: how many rows, the first places, and what to do."""
    if not audit.kinds:
        return
    counts = audit.counts()
    if fine := [words for kind, words in NOTHING.items() if counts.get(kind) == 0]:
        yield f"the text of {sum(audit.rows.values()):,} rows: {'; '.join(fine)}"
    for kind in audit.kinds:
        for name in audit.rows:
            if found := [one for one in audit.findings if one.kind == kind and one.row.set == name]:
                yield from _of_set(audit, kind, name, found)
        if counts[kind] and getattr(config, kind) == "report":
            yield f"  data.audit.{kind}: drop leaves such rows out of training, off does not look for them"


def _of_set(audit: Audit, kind: str, name: str, found: list[Finding]) -> Iterator[str]:
    other = "evaluation" if name == TRAIN else "training"
    left_out = len({one.row for one in found if one.dropped})
    gone = f"; {left_out:,} of them left out" if left_out else ""
    rows = len({one.row for one in found})
    yield f"{kind}: {rows:,} rows of {name} {MEANS[kind].format(other=other)}{gone}"
    # first those that share most: a quotation is no leak
    worst = sorted(found, key=lambda one: -(one.share or 0.0))[:SHOWN] if kind == "overlap" else found[:SHOWN]
    for one in worst:
        beside = f", as {audit.place(one.other)}" if one.other else ""
        yield f"  {audit.place(one.row)}{beside}: {one.reason}"
    if len(found) > SHOWN:
        yield f"  and {len(found) - SHOWN:,} more (--json has all)"
