"""What an audit found, row by row, and which rows a run leaves out for it. It reads nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from velocity.config.audit import AuditConfig
from velocity.errors import UserError

KINDS = ("duplicates", "overlap", "secrets", "oddities")
TRAIN = "train"
SHOWN = 100  # findings of audit.json


class Row(NamedTuple):
    """A row of a set: the number of its source, of the file there, and the line in it."""

    set: str
    source: int
    file: int
    line: int


@dataclass(frozen=True)
class Finding:
    """What is wrong with a row. `other` is the row that it has text in common with, `share` how much."""

    kind: str
    row: Row
    reason: str
    other: Row | None = None
    share: float | None = None
    dropped: bool = False


def decide(findings: Iterable[Finding], config: AuditConfig) -> list[Finding]:
    """The findings, each with whether its row is left out.

    Of rows that say the same one stays: the first that nothing else takes out.
    """
    findings, drops = list(findings), config.acts("drop")
    gone = {one.row for one in findings if one.kind in drops and one.kind != "duplicates" and one.row.set == TRAIN}
    spared: dict[Row | None, Row] = {}
    for one in findings:
        if one.kind == "duplicates" and one.other in gone and one.row not in gone:
            spared.setdefault(one.other, one.row)

    def drops_it(one: Finding) -> bool:
        return (
            one.kind in drops
            and one.row.set == TRAIN
            and (one.kind != "duplicates" or spared.get(one.other) != one.row)
        )

    return [replace(one, dropped=drops_it(one)) for one in findings]


@dataclass(frozen=True)
class Audit:
    """What was found in the sets of a job. `kinds` were looked for; `names` has the files of each source of a set."""

    kinds: tuple[str, ...]
    rows: Mapping[str, int]
    findings: Sequence[Finding]
    names: Mapping[str, Sequence[Sequence[str]]]

    def counts(self) -> dict[str, int]:
        """Findings of each kind that was looked for."""
        found = Counter(one.kind for one in self.findings)
        return {kind: found[kind] for kind in self.kinds}

    def place(self, row: Row) -> str:
        """`file:line` of a row."""
        return f"{self.names[row.set][row.source][row.file]}:{row.line}"

    def plain(self, most: int | None = None) -> dict[str, Any]:
        """The audit as plain values, with so many of the findings."""
        dropped = Counter(one.kind for one in self.findings if one.dropped)
        return {
            "counts": self.counts(),
            "dropped": {kind: dropped[kind] for kind in self.kinds},
            "rows": dict(self.rows),
            "findings": [self.line(one) for one in self.findings[:most]],
        }

    def line(self, one: Finding) -> dict[str, Any]:
        """A finding as plain values."""
        row = one.row
        return {
            "kind": one.kind,
            "set": row.set,
            "file": self.names[row.set][row.source][row.file],
            "line": row.line,
            "reason": one.reason,
            "dropped": one.dropped,
            "with": self.place(one.other) if one.other else None,
            "share": one.share,
        }

    def left_out(self, source: int) -> dict[tuple[int, int], dict[str, Any]]:
        """The rows of a training source that are left out, by file and line: why, as rejected.jsonl says it."""
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for one in self.findings:
            if one.dropped and one.row.source == source:
                line = self.line(one)
                said = {"reason": line["reason"], "kind": line["kind"], "with": line["with"], "share": line["share"]}
                found.setdefault((one.row.file, one.row.line), said)
        return found

    def rows_left_out(self) -> list[Row]:
        """The same of all sources, as rows alone."""
        return sorted({one.row for one in self.findings if one.dropped})

    def refuse(self, config: AuditConfig) -> None:
        """Nothing, or UserError where something was found with which the job is not to run."""
        for kind in config.acts("error"):
            found = [one for one in self.findings if one.kind == kind]
            if found:
                kinds = "; ".join(sorted({one.reason for one in found}))
                what = f"{len(found)} rows hold what is not to be trained on: {kinds}"
                more = f", and {len(found) - 3} more" if len(found) > 3 else ""
                where = ", ".join(self.place(one.row) for one in found[:3]) + more
                raise UserError(what, where, f"take them out, or set data.audit.{kind}: drop")
