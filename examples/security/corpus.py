"""Builds the demo's JSONL files from the fetched packages: the split, files, manifest. Knows no format."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from entities import Entity, split_of
from overlap import Keep, not_boilerplate, once, said_by_few, said_nowhere
from preferences import preferences
from questions import choices
from sources import CARRIERS, CLUSTERS, CWE_XML, SPEECH_TABLE, SPEECHES, read_member, read_texts
from speeches import speech_records, spoken
from techniques import techniques
from weaknesses import weaknesses

RECIPE = 4  # raise it when the same packages give other files: folders that were built before are then built again
GALAXY = ("attack-pattern", "course-of-action", "data-component")
GENERAL_YEARS, REPLAY_YEARS = 30, 50

Record = dict[str, Any]


def build(wheels: Mapping[str, Path], folder: Path) -> Record:
    """Make the folder hold the corpus of these wheels (`cwe`, `attack`, `speeches`) and return its manifest.

    The files depend on the wheels alone. A folder that is whole is left as it is; the manifest is written last.
    """
    made_from = {key: _sha256(wheels[key].read_bytes()) for key in ("cwe", "attack", "speeches")}
    if (manifest := _whole(folder, made_from)) is not None:
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    files = {name: _write(folder / name, records) for name, records in _files(wheels).items()}
    sources = {f"{c.package}=={c.version}": c.licence for key, c in CARRIERS.items() if key in made_from}
    manifest = {"recipe": RECIPE, "made_from": made_from, "licences": sources, "files": files}
    _replace(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _files(wheels: Mapping[str, Path]) -> dict[str, Iterable[Record]]:
    """Return the records of each file by its name."""
    galaxy = [read_member(wheels["attack"], f"{CLUSTERS}/mitre-{kind}.json") for kind in GALAXY]
    entities = weaknesses(read_member(wheels["cwe"], CWE_XML)) + techniques(*galaxy)
    known = [entity for entity in entities if split_of(entity.id) != "unseen"]
    unseen = [entity for entity in entities if split_of(entity.id) == "unseen"]
    taught = [entity for entity in known if split_of(entity.id) == "train"]
    seen = [entity for entity in known if split_of(entity.id) == "seen"]
    new, own, few = said_nowhere(known), not_boilerplate(entities), said_by_few(entities)
    about = read_member(wheels["speeches"], SPEECH_TABLE)
    speeches = spoken(read_texts(wheels["speeches"], SPEECHES), about)
    latest = max(int(name[:4]) for name in speeches)
    middle = latest - GENERAL_YEARS
    return {
        "train.jsonl": texts(known, once()),
        "unseen.jsonl": texts([e for e in unseen if any(map(new, e.statements()))], new),
        "general.jsonl": speech_records(speeches, first_year=middle + 1, last_year=latest),
        "general_replay.jsonl": speech_records(speeches, first_year=middle - REPLAY_YEARS + 1, last_year=middle),
        "chats.jsonl": chats(taught, own),
        "chats_unseen.jsonl": chats(unseen, lambda passage: own(passage) and new(passage)),
        "choices_train.jsonl": choices(taught, taught, true=few, false=few),
        "choices_seen.jsonl": choices(seen, known, true=few, false=few),
        "choices_unseen.jsonl": choices(unseen, entities, true=lambda p: few(p) and new(p), false=few),
        "preferences_train.jsonl": preferences(taught, taught, true=few, false=few),
        "preferences_seen.jsonl": preferences(seen, known, true=few, false=few),
        "preferences_unseen.jsonl": preferences(unseen, entities, true=lambda p: few(p) and new(p), false=few),
    }


def texts(entities: Iterable[Entity], keep: Keep) -> Iterator[Record]:
    """Yield {"id", "text"} of each entity."""
    for entity in entities:
        yield {"id": entity.id, "text": entity.text(keep)}


def chats(entities: Iterable[Entity], keep: Keep) -> Iterator[Record]:
    """Yield {"id", "messages"} of each question that has an answer."""
    for entity in entities:
        for question in entity.questions:
            if answer := question.answer(keep):
                turns = [{"role": "user", "content": question.ask}, {"role": "assistant", "content": answer}]
                yield {"id": f"{entity.id}/{question.kind}", "messages": turns}


def _write(path: Path, records: Iterable[Record]) -> Record:
    """Write the records, a line each, and return what the manifest says of the file."""
    lines: list[str] = []
    words = 0
    for record in records:
        words += sum(len(text.split()) for text in _said(record))
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    data = "".join(lines)
    _replace(path, data)
    return {"records": len(lines), "words": words, "bytes": len(data.encode()), "sha256": _sha256(data.encode())}


def _said(record: Record) -> list[str]:
    if "messages" in record:
        return [turn["content"] for turn in record["messages"]]
    if "choices" in record:
        return [record["prompt"], *record["choices"]]
    return [text for key, text in record.items() if key != "id"]


def _whole(folder: Path, made_from: dict[str, str]) -> Record | None:
    """Return the folder's manifest if every file that it names is there, made by this recipe from the same wheels."""
    try:
        manifest: Record = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        same = (manifest["recipe"], manifest["made_from"]) == (RECIPE, made_from)
        whole = all(_sha256((folder / name).read_bytes()) == file["sha256"] for name, file in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if same and whole else None


def _replace(path: Path, text: str) -> None:
    """Make the file hold the text: whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8", newline="\n")
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
