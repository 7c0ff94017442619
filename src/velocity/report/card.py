"""The data of a run: where it is from, how much there is, what was left out, what an audit found. It knows no page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from velocity.report.facts import Run, mapping, read_json, read_lines
from velocity.report.figures import histogram
from velocity.report.spelling import cut
from velocity.report.table import Figure, Table
from velocity.runs.folder import RunFolder

MOST_REJECTED = 200_000  # lines of rejected.jsonl that are counted
MOST_LENGTHS = 4_000_000  # of a source, that are looked at
MOST_MANIFEST_BYTES = 1 << 20
SHOWN, BARS, LETTERS = 8, 36, 160
AUDITED = {
    "duplicates": "exact and near duplicates", "overlap": "rows of an evaluation set in the training data",
    "secrets": "secrets and private keys", "oddities": "languages and encodings that look wrong",
}  # fmt: skip


@dataclass(frozen=True)
class DataCard:
    """What is said of a run's data. `audit` is None where nobody has looked."""

    sources: Table | None
    licences: Table | None
    rejected: Sequence[Table]
    lengths: Figure | None
    audit: Sequence[Table] | None

    def __bool__(self) -> bool:
        return bool(self.sources or self.rejected or self.audit)


def data_card(run: Run, number: int = 0) -> DataCard:
    """The card of the run's data; `number` tells its figure from those of other runs on the page."""
    entries, folder = list(_entries(run.environment)), RunFolder(run.folder)
    return DataCard(
        sources=_sources(entries), licences=_licences(entries), rejected=_rejected(folder.rejected),
        lengths=_lengths(run, entries, number), audit=_audit(folder.audit),
    )  # fmt: skip


def _entries(environment: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each source of environment.json with the set that it belongs to."""
    data = mapping(environment.get("data"))
    groups = {"train": data.get("train"), "prompts": environment.get("prompts")}
    for name, group in [*groups.items(), *mapping(data.get("eval")).items(), *mapping(environment.get("sets")).items()]:
        for entry in group if isinstance(group, list) else [group]:
            if isinstance(entry, dict):
                yield str(name), entry


def _sources(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    rows = []
    for name, entry in entries:
        files = [str(file) for file in entry.get("files") or ()]
        where = str(entry.get("path") or (files[0] if files else ""))
        where += f" ({len(files)} files)" if len(files) > 1 else ""
        tokens, trained = entry.get("tokens"), entry.get("trained")
        share = f"{100 * trained / tokens:.1f} %" if tokens and isinstance(trained, int) else "–"
        counts = [
            _count(entry, *keys)
            for keys in (("records",), ("sequences", "prompts", "rows"), ("tokens",), ("rejected",))
        ]
        rows.append([name, where, *counts, _count(entry, "cut"), share])
    head = ["set", "source", "records", "sequences", "tokens", "left out", "cut", "trained on"]
    return Table("Sources", head, rows, names=2) if rows else None


def _count(entry: Mapping[str, Any], *keys: str) -> str:
    return next((f"{entry[key]:,}" for key in keys if isinstance(entry.get(key), int)), "–")


def _licences(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> Table | None:
    """What a manifest.json beside a source says of licences."""
    rows: dict[tuple[str, str], None] = {}
    folders = dict.fromkeys(Path(str(file)).parent for _, entry in entries for file in entry.get("files") or ())
    for manifest in (folder / "manifest.json" for folder in folders):
        try:
            if manifest.stat().st_size > MOST_MANIFEST_BYTES:
                continue
        except (OSError, ValueError):
            continue
        licences = read_json(manifest).get("licences")
        for name, words in licences.items() if isinstance(licences, dict) else ():
            rows[str(name), str(words)] = None
    return Table("Licences", ["made from", "licence"], [list(row) for row in rows], names=2) if rows else None


def _rejected(path: Path) -> list[Table]:
    """How many records were left out for which reason, and the first of them."""
    lines = list(islice(read_lines(path), MOST_REJECTED))
    if not lines:
        return []
    reasons = Counter(cut(str(line.get("reason", "")), LETTERS) for line in lines).most_common(SHOWN)
    more = f"The first {MOST_REJECTED:,} are counted." if len(lines) == MOST_REJECTED else ""
    first = [
        [f"{line.get('file', '')}:{line.get('line', '')}", str(line.get("field") or ""), str(line.get("reason", ""))]
        for line in lines[:SHOWN]
    ]
    told = [[cut(cell, LETTERS) for cell in row] for row in first]
    return [
        Table("Left out, by reason", ["reason", "records"], [[why, f"{n:,}"] for why, n in reasons], 1, more),
        Table("The first that were left out", ["place", "field", "reason"], told, 3),
    ]


def _lengths(run: Run, entries: Sequence[tuple[str, Mapping[str, Any]]], number: int) -> Figure | None:
    """How long the sequences of training are, or the prompts; None where their store is not on this disk any more."""
    own = [entry for name, entry in entries if name in ("train", "prompts")] or [entry for _, entry in entries]
    parts = [lengths for entry in own if (lengths := _stored(Path(str(entry.get("store", ""))))) is not None]
    lengths = np.concatenate([np.zeros(0, dtype=np.int64), *parts])
    if not len(lengths):
        return None
    data = run.job.get("data")
    limit = data.get("sequence_length") if isinstance(data, dict) else None
    low, high = int(lengths.min()), int(lengths.max())
    width = max(-(-(high + 1 - low) // BARS), 1)  # whole tokens a bar
    edges = np.arange(low, high + 1 + width, width)
    counts, _ = np.histogram(lengths, edges)
    return histogram(f"l-{number}", edges.tolist(), counts.tolist(), limit=limit if isinstance(limit, int) else None)


def _stored(store: Path) -> Any:
    try:
        found = np.load(store / "lengths.npy", mmap_mode="r", allow_pickle=False)
        return np.asarray(found[:MOST_LENGTHS], dtype=np.int64).ravel()
    except (OSError, ValueError, TypeError, OverflowError):
        return None


def _audit(path: Path) -> list[Table] | None:
    audit = read_json(path)
    if not audit:
        return None
    counts, dropped, looked_at = (mapping(audit.get(key)) for key in ("counts", "dropped", "rows"))
    rows = [[AUDITED.get(kind, kind), str(count), str(dropped.get(kind, 0))] for kind, count in counts.items()]
    looked = ", ".join(f"{count:,} of {name}" for name, count in looked_at.items())
    tables = [Table("What an audit found", ["kind", "rows", "left out"], rows, 1, f"Rows looked at: {looked}.")]
    found = [
        [str(one.get("kind", "")), f"{one.get('set', '')} {one.get('file', '')}:{one.get('line', '')}",
         str(one.get("reason", "")), str(one.get("with") or "")]
        for one in audit.get("findings") or [] if isinstance(one, dict)
    ]  # fmt: skip
    if found:
        note = f"{len(found) - SHOWN} more stand in audit.json." if len(found) > SHOWN else ""
        told = [[cut(cell, LETTERS) for cell in row] for row in found[:SHOWN]]
        tables.append(Table("Findings", ["kind", "row", "what", "with"], told, 4, note))
    return tables
