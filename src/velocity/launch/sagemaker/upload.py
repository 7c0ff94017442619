"""Inputs that lie here are put into S3, each under a name of its content: what is there already is not sent again."""

from __future__ import annotations

import glob
import json
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from velocity.checkpoints.commit import Entry, entry_of
from velocity.config.resolved import is_resolved
from velocity.errors import UserError
from velocity.launch.sagemaker.inputs import Channel
from velocity.runs.folder import RunFolder

if TYPE_CHECKING:
    from velocity.checkpoints.store import Store

Files = Mapping[str, Path]  # name in the channel → file here
Say = Callable[[str], None]

# What a model is loaded from; beside it many folders hold the same weights once more, for other programs.
OF_A_MODEL = {".json", ".jinja", ".model", ".txt", ".py", ".safetensors"}
DIGEST_LETTERS = 16
SAID_BYTES = 1 << 28  # a file so large is told of: it takes a while


def files_of(channel: Channel) -> Files:
    """What a channel is to show of this machine; UserError where that is nothing."""
    root, paths = _found(channel)
    files = {path.relative_to(root).as_posix(): path for path in paths if path.is_file() and _shown(path, root)}
    if channel.weights:
        files = {name: path for name, path in files.items() if "/" not in name and path.suffix in OF_A_MODEL}
    if not files:
        raise UserError(f"nothing to read in {channel.path}", channel.where, "check the path")
    return dict(sorted(files.items()))


def _found(channel: Channel) -> tuple[Path, list[Path]]:
    path = Path(channel.path).expanduser()
    if channel.weights:
        path = _model_folder(path)
    if path.is_dir():
        return path, [*path.rglob("*")]
    if path.is_file():
        return path.parent, [path]
    names = glob.glob(str(path), recursive=True)
    parts = PurePosixPath(path).parts
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    return Path(*parts[:fixed]), [Path(name) for name in names]


def _shown(path: Path, root: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(root).parts)


def _model_folder(path: Path) -> Path:
    """A finished run's model, with its adapter merged; or the folder itself."""
    run = RunFolder(path)
    if not is_resolved(run.job):
        return path
    if not run.model.is_dir():
        raise UserError("the run is not finished: it has no model yet", str(path), f"velocity run {run.job}")
    if (run.model / "adapter_config.json").is_file():
        if not run.merged.is_dir():
            raise UserError(
                "an adapter, not a model", str(run.model), f"velocity export {path} DIR merges it; name DIR"
            )
        return run.merged
    return run.model


def entries_of(files: Files) -> dict[str, Entry]:
    """Size and hash of each."""
    return {name: entry_of(path) for name, path in files.items()}


def digest_of(entries: Mapping[str, Entry]) -> str:
    """One hash of all names and contents."""
    listed = json.dumps(sorted((name, entry.sha256) for name, entry in entries.items()))
    return sha256(listed.encode()).hexdigest()[:DIGEST_LETTERS]


def send(store: Store, folder: str, files: Files, entries: Mapping[str, Entry], say: Say) -> int:
    """The store has all of them in the folder, proven; how many were not there yet."""
    missing = [name for name in files if not store.has(f"{folder}/{name}", entries[name])]
    if missing:
        size = sum(entries[name].size for name in missing)
        say(f"uploading {len(missing)} file(s), {size:,} bytes → {store.url}/{folder}")
    for name in missing:
        if entries[name].size >= SAID_BYTES:
            say(f"  {name}, {entries[name].size:,} bytes …")
        store.put(files[name], f"{folder}/{name}", entries[name])
    return len(missing)
