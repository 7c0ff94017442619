"""The commit protocol: written aside, synced, listed, renamed, marked last. It knows no tensors and no engine.

A folder without its COMMITTED file does not exist: it is a save that was cut off. COMMITTED holds the hash of
manifest.json, which holds the size and the hash of every file: a file that changed afterwards is found.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from velocity.files import sync, sync_all

MARKER, MANIFEST = "COMMITTED", "manifest.json"
READ_AT_ONCE = 1 << 22  # bytes


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a file."""

    size: int  # bytes
    sha256: str


def name_of(step: int) -> str:
    """The folder of the checkpoint after so many steps."""
    return f"step-{step:08}"


def step_of(folder: Path) -> int:
    """The steps after which the folder's checkpoint was taken; -1 where it is none's."""
    found = re.fullmatch(r"step-(\d{8,})", folder.name)
    return int(found[1]) if found else -1


def entry_of(file: Path) -> Entry:
    """Size and hash of a file as it is."""
    digest, size = hashlib.sha256(), 0
    with file.open("rb", buffering=0) as stream:
        while data := stream.read(READ_AT_ONCE):
            digest.update(data)
            size += len(data)
    return Entry(size, digest.hexdigest())


def temporary_of(final: Path) -> Path:
    """Where the checkpoint is written before it is one."""
    return final.with_name(f".{final.name}.tmp")


def discard(temporary: Path) -> None:
    """What a save that was cut off left is gone."""
    shutil.rmtree(temporary, ignore_errors=True)


def commit(final: Path, entries: Mapping[str, Entry]) -> None:
    """The folder that lies at `temporary_of(final)` is the checkpoint `final`; `entries` are its files."""
    temporary = temporary_of(final)
    manifest = temporary / MANIFEST
    manifest.write_text(json.dumps({"files": {name: asdict(entry) for name, entry in entries.items()}}, indent=1))
    digest = entry_of(manifest).sha256
    sync_all(temporary)
    shutil.rmtree(final, ignore_errors=True)  # without a marker, or we would not be here
    temporary.rename(final)
    sync(final.parent)
    marker = final / f".{MARKER}.tmp"  # an empty one would count: a kill or a full disk may come before its content
    marker.write_text(digest + "\n")
    sync(marker)
    marker.rename(final / MARKER)
    sync(final)


def committed(checkpoints: Path) -> list[Path]:
    """The folders that are marked, oldest first; whether their files are whole, `damage` says."""
    marked = (marker.parent for marker in checkpoints.glob(f"step-*/{MARKER}"))
    return sorted((folder for folder in marked if step_of(folder) >= 0), key=step_of)


def manifest_of(folder: Path) -> dict[str, Entry]:
    """The files of a committed checkpoint by name. ValueError where the manifest is not the one that was committed."""
    manifest = folder / MANIFEST
    if not manifest.is_file() or entry_of(manifest).sha256 != (folder / MARKER).read_text().strip():
        raise ValueError(f"{MANIFEST} is not the one that was committed")
    return {name: Entry(**facts) for name, facts in json.loads(manifest.read_text())["files"].items()}


def damage(
    folder: Path, names: Iterable[str] | None = None, *, sizes_only: bool = False, elsewhere: bool = False
) -> str | None:
    """What is wrong with a committed checkpoint, or with the files `names` of it; None where it is whole.

    With `sizes_only` the files are not read; those that are missing may be `elsewhere`: on another node's disk.
    """
    try:
        entries = manifest_of(folder)
        for name in entries if names is None else names:
            file, entry = folder / name, entries[name]
            if not file.is_file():
                if elsewhere:
                    continue
                return f"{name} is missing"
            if (size := file.stat().st_size) != entry.size:
                return f"{name} has {size:,} bytes of {entry.size:,}"
            if not sizes_only and entry_of(file).sha256 != entry.sha256:
                return f"{name} has changed since it was written"
    except (OSError, ValueError) as error:
        return str(error)
    return None


def sweep(checkpoints: Path) -> None:
    """What saves and removals that were cut off left is gone. Nothing is being saved meanwhile."""
    for folder in [*checkpoints.glob(".step-*.tmp"), *checkpoints.glob("step-*")]:
        if not (folder / MARKER).is_file():
            shutil.rmtree(folder, ignore_errors=True)


def remove(folder: Path) -> None:
    """The checkpoint is gone; a half-removed one is not taken for whole."""
    if folder.is_dir():
        (folder / MARKER).unlink(missing_ok=True)
        sync(folder)
        shutil.rmtree(folder)
