"""Where a model's files are, and whether they are whole. It reads headers and sizes, never weights; no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from velocity.config.resolved import is_resolved
from velocity.config.sections import ModelConfig
from velocity.errors import UserError

HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py"]


def locate(model: ModelConfig) -> Path:
    """The folder with the model's files: the one named, a finished run's model/, or a hub snapshot."""
    path = Path(model.path).expanduser()
    if path.is_dir():
        folder = path / "model" if is_resolved(path / "job.yaml") else path
        if not folder.is_dir():
            raise UserError("the run is not finished: it has no model yet", str(path), f"velocity run {path}/job.yaml")
        check_whole(folder)
        return folder
    if model.path.startswith((".", "/", "~")) or not HUB_ID.match(model.path):
        raise UserError(f"no such model folder: {model.path}", "model", "give a folder, a run's output, or a hub id")
    return _from_hub(model)


def _from_hub(model: ModelConfig) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=HUB_FILES))
    except Exception as error:  # the hub's client has errors of its own, and its network library others
        what = f"'{model.path}' is no folder here, and the hub does not give it: {type(error).__name__}"
        raise UserError(what, "model", "check the path or the id; a private model needs HF_TOKEN") from None
    check_whole(folder)
    return folder


def check_whole(folder: Path) -> None:
    """Nothing, or UserError where config or weights are missing or a shard is shorter than its header says."""
    if not (folder / "config.json").is_file():
        raise UserError("the model folder has no config.json", str(folder), "give the folder of a Hugging Face model")
    if _read_object(folder / "config.json") is None:
        raise UserError("the model's config.json is not valid JSON", str(folder), "copy the model again")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = (_read_object(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError("the index of the weights is not valid", str(index), "copy the model again")
        names = sorted(set(weight_map.values()))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    if not names:
        pickled = "; pickled weights are not read, convert them to safetensors" if list(folder.glob("*.bin")) else ""
        raise UserError(f"the model folder has no weights{pickled}", str(folder), "*.safetensors are needed")
    for name in names:
        _check_shard(folder / name)


def _read_object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _check_shard(path: Path) -> None:
    """The file format: 8 bytes with the header's length, the header (JSON with each tensor's end), the tensors."""
    if not path.is_file():
        raise UserError("a shard of the model is missing", str(path), "copy the model again")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        whole = 8 + length <= size
        try:
            header = json.loads(stream.read(length)) if whole else {}
        except ValueError:
            header, whole = {}, False
    end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
    if not whole or 8 + length + end != size:
        what = f"the weights are truncated: {size} bytes, of {8 + length + end if whole else 'more'}"
        raise UserError(what, str(path), "copy the model again")
