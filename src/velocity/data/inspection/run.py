"""The audit of a job's data: every row is read once, candidates for duplicates once more, and what is found is kept.

Findings of each kind lie in the cache under the contents and the settings that they depend on. No model is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from velocity.config.audit import AuditConfig
from velocity.data import parse, records, sources
from velocity.data.fingerprint import digest, folder_hash
from velocity.data.inspection.duplicates import Copies, Signer, candidates
from velocity.data.inspection.findings import KINDS, TRAIN, Audit, Finding, Row, decide
from velocity.data.inspection.leaks import load_detectors
from velocity.data.inspection.look import Look, Print, Reader, SetSeen
from velocity.data.inspection.oddities import load_fixer, load_identifier, usual
from velocity.data.inspection.overlap import EvalIndex, Overlap, Overlaps
from velocity.data.pool import in_order
from velocity.data.prepare import ListedSource
from velocity.data.sources import read_chunks
from velocity.files import write_atomically

Sets = Mapping[str, Sequence[ListedSource]]  # by name; `train` is one of them
KILLED = "an auditing process was killed"
PACKAGES = ("datasketch", "detect-secrets", "ftfy", "py3langid")


class Inspection:
    """Audits the sets of one job."""

    def __init__(  # noqa: PLR0913, PLR0917 - what findings depend on, where they are kept, who hears of it
        self,
        sets: Sets,
        formats: Sequence[str],
        config: AuditConfig,
        processes: int | None,
        cache: Path,
        report: Callable[[str], None],
    ) -> None:
        self.sets, self.formats, self.config = sets, formats, config
        self.processes, self.cache, self.report = processes, cache, report
        self._signer: Signer | None = None

    def audit(self, kinds: Sequence[str]) -> Audit:
        """What was found of these kinds, now or before; of others that are not `off`, if it is known from before."""
        known = {kind: kept for kind in self.config.acts("report", "drop", "error") if (kept := self._kept(kind))}
        if missing := [kind for kind in kinds if kind not in known]:
            known.update(self._look(missing))
        findings = [one for kind in KINDS if kind in known for one in known[kind][1]]
        rows = next((rows for rows, _ in known.values()), {})
        names = {name: [[file.path for file in one.files] for one in listed] for name, listed in self.sets.items()}
        return Audit(tuple(kind for kind in KINDS if kind in known), rows, decide(findings, self.config), names)

    def _place(self, kind: str) -> Path:
        """Where the findings of a kind are kept."""
        modules = [
            *Path(__file__).parent.glob("*.py"),
            *(Path(one.__file__ or "") for one in (parse, records, sources)),
        ]
        settings = {"duplicates": self.config.similarity, "overlap": [self.config.words, self.config.share]}.get(kind)
        contents = [
            [name, [[one.source.format, one.source.fields, one.hashes] for one in listed]]
            for name, listed in self.sets.items()
        ]
        made_by = [folder_hash(modules, self.cache), [version(package) for package in PACKAGES]]
        return self.cache / "audit" / f"{digest([kind, made_by, settings, list(self.formats), contents])}.json"

    def _kept(self, kind: str) -> tuple[dict[str, int], list[Finding]] | None:
        try:
            kept = json.loads(self._place(kind).read_text(encoding="utf-8"))
            return (kept["rows"], [_read(kind, *one) for one in kept["findings"]]) if _whole(kept) else None
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def _look(self, kinds: Sequence[str]) -> dict[str, tuple[dict[str, int], list[Finding]]]:
        """All rows of all sets are read; what is found is kept."""
        self._load(kinds)
        held_out = [self._see(name, kinds, None) for name in self.sets if name != TRAIN]
        index = None
        if "overlap" in kinds:
            index = EvalIndex((words for seen in held_out for words in seen.words), self.config.words)
        train = self._see(TRAIN, kinds, index)
        everything = [train, *held_out]
        rows = {seen.name: len(seen) for seen in everything}
        findings = [one for seen in everything for one in self._of_set(seen, kinds)]
        if index is not None:
            findings += _overlaps(train, held_out, index, self.config.share)
        made = {kind: (rows, [one for one in findings if one.kind == kind]) for kind in kinds}
        for kind, (_, found) in made.items():
            body = {"rows": rows, "findings": [[one.row, one.reason, one.other, one.share] for one in found]}
            write_atomically(self._place(kind), json.dumps({**body, "check": digest(body)}))
        return made

    def _load(self, kinds: Sequence[str]) -> None:
        """What detectors need lies in memory: the processes share it."""
        if "duplicates" in kinds:
            self._signer = Signer(self.config.similarity)
        if "secrets" in kinds:
            load_detectors()
        if "oddities" in kinds:
            load_fixer()
            load_identifier()

    def _see(self, name: str, kinds: Sequence[str], index: EvalIndex | None) -> SetSeen:
        seen = SetSeen(name)
        for number, listed in enumerate(self.sets[name]):
            keep_words = "overlap" in kinds and name != TRAIN
            look = Look(Reader(listed.source, self.formats), kinds, self._signer, index, keep_words)
            where = listed.source.path
            for file, some in in_order(look, read_chunks(listed.files), self.processes, killed=KILLED, where=where):
                seen.add(number, file, some)
                self.report(f"auditing {where}: {len(seen):,} records")
        return seen

    def _of_set(self, seen: SetSeen, kinds: Sequence[str]) -> Iterator[Finding]:
        if "duplicates" in kinds:
            yield from self._copies(seen)
        yield from (Finding(kind, seen.row(number), reason) for number, kind, reason in seen.marks)
        if common := usual(seen.languages):
            language, share = common
            for number, other in enumerate(seen.languages):
                if other not in ("", language):
                    reason = f"its language is {other}; {share:.0%} of {seen.name} are {language}"
                    yield Finding("oddities", seen.row(number), reason)

    def _copies(self, seen: SetSeen) -> Iterator[Finding]:
        """Candidates are read again and compared."""
        copies = Copies(candidates(seen.bands_NB), self.config.similarity)
        numbers = {seen.row(number): number for number in sorted(copies.wanted)}
        for source, listed in enumerate(self.sets[seen.name]):
            only = {(row.file, row.line) for row in numbers if row.source == source}
            if not only:
                continue
            work, where = Print(Reader(listed.source, self.formats), only), listed.source.path
            for some in in_order(work, read_chunks(listed.files), self.processes, killed=KILLED, where=where):
                for file, line, print_of in some:
                    row = Row(seen.name, source, file, line)
                    if copy := copies.add(numbers[row], print_of):
                        runs = f"{copy.share:.0%} of its and an earlier row's 5-word runs are the same"
                        reason = "the same text as an earlier row" if copy.exact else runs
                        yield Finding("duplicates", row, reason, seen.row(copy.first), round(copy.share, 4))


def _overlaps(train: SetSeen, held_out: Sequence[SetSeen], index: EvalIndex, least: float) -> Iterator[Finding]:
    overlaps = Overlaps(index)
    for number, hits in train.hits:
        overlaps.add(number, hits)
    rows = [seen.row(number) for seen in held_out for number in range(len(seen))]
    trained, evaluated = overlaps.found(least)

    def finding(row: Row, other: Row, one: Overlap, reason: str) -> Finding:
        more = f"; so with {one.rows - 1} more" if one.rows > 1 else ""
        return Finding("overlap", row, reason + more, other, round(one.share, 4))

    for one in trained:
        reason = f"holds {one.share:.0%} of the text of an evaluation row"
        yield finding(train.row(one.row), rows[one.other], one, reason)
    for one in evaluated:
        reason = f"{one.share:.0%} of its text stands in training data"
        yield finding(rows[one.row], train.row(one.other), one, reason)


def _read(kind: str, row: list[Any], reason: str, other: list[Any] | None, share: float | None) -> Finding:
    return Finding(kind, Row(*row), reason, Row(*other) if other else None, share)


def _whole(kept: dict[str, Any]) -> bool:
    return bool(kept.pop("check") == digest(kept))
