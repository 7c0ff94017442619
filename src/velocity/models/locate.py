"""Where a model's files are, and whether they are whole. It reads headers and sizes, never weights; no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from velocity.config.resolved import is_resolved
from velocity.config.sections import ModelConfig
from velocity.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
HUB_FILES = ["*.json", "*.jinja", "*.model", "*.txt", "*.py"]
HUB_LEFT = ["consolidated*", "original/*", "*/*.safetensors"]  # the same weights once more, for other programs


def locate(model: ModelConfig, *, weights: bool = True) -> Path:
    """The folder with the model's files: the one named, a finished run's model/ (or merged/), or a hub snapshot.

    Without `weights` those of a hub model are not fetched, and may be absent.
    """
    path = Path(model.path).expanduser()
    if path.is_dir():
        folder = path / "model" if is_resolved(path / "job.yaml") else path
        if not folder.is_dir():
            raise UserError("the run is not finished: it has no model yet", str(path), f"velocity run {path}/job.yaml")
        if is_adapter(folder) and (path / "merged").is_dir():
            folder = path / "merged"
        if is_adapter(folder):
            raise UserError(
                "an adapter, not a model", str(folder), f"velocity export {path} DIR merges it into its model"
            )
        check_whole(folder)
        return folder
    if model.path.startswith((".", "/", "~")) or not HUB_ID.match(model.path):
        raise UserError(f"no such model folder: {model.path}", "model", "give a folder, a run's output, or a hub id")
    return _from_hub(model, weights=weights)


def _from_hub(model: ModelConfig, *, weights: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        wanted = [*HUB_FILES, "*.safetensors"] if weights else HUB_FILES
        folder = Path(
            snapshot_download(model.path, revision=model.revision, allow_patterns=wanted, ignore_patterns=HUB_LEFT)
        )
    except Exception as error:  # the hub's client has errors of its own, and its network library others
        what = f"'{model.path}' is no folder here, and the hub does not give it: {type(error).__name__}"
        raise UserError(what, "model", "check the path or the id; a private model needs HF_TOKEN") from None
    check_config(folder)
    if weights:
        check_whole(folder)
    return folder


def is_adapter(folder: Path) -> bool:
    """True for a folder that peft loads."""
    return (folder / ADAPTER_CONFIG).is_file()


def base_of(adapter: Path) -> ModelConfig:
    """The model that an adapter belongs to; UserError where its configuration does not say."""
    config = _read_object(adapter / ADAPTER_CONFIG) or {}
    if not (path := config.get("base_model_name_or_path")):
        raise UserError("the adapter does not name its model", str(adapter / ADAPTER_CONFIG), "copy the adapter again")
    return ModelConfig(path=path, revision=config.get("revision"))


def check_adapter(folder: Path) -> None:
    """Nothing, or UserError where the adapter's weights are missing, torn or a pickle, which peft would load."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        what = f"the adapter has no weights{_pickled(folder)}"
        raise UserError(what, str(folder), f"it needs {ADAPTER_WEIGHTS}")
    _check_shard(folder / ADAPTER_WEIGHTS)


def check_config(folder: Path) -> None:
    """Nothing, or UserError where the configuration is missing or torn."""
    if not (folder / "config.json").is_file():
        raise UserError("the model folder has no config.json", str(folder), "give the folder of a Hugging Face model")
    if _read_object(folder / "config.json") is None:
        raise UserError("the model's config.json is not valid JSON", str(folder), "copy the model again")


def weight_files(folder: Path) -> list[str]:
    """Names of the files that transformers loads: those of the index, or the one; UserError for a torn index."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        weight_map = (_read_object(index) or {}).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError("the index of the weights is not valid", str(index), "copy the model again")
        return sorted(set(weight_map.values()))
    return ["model.safetensors"] if (folder / "model.safetensors").is_file() else []


def check_whole(folder: Path) -> None:
    """Nothing, or UserError where config or weights are missing or a shard is shorter than its header says."""
    check_config(folder)
    names = weight_files(folder)
    if not names:
        raise UserError(
            f"the model folder has no weights{_pickled(folder)}",
            str(folder),
            "it needs model.safetensors, or shards with an index",
        )
    for name in names:
        _check_shard(folder / name)


def _pickled(folder: Path) -> str:
    """What to say where the weights are there as a pickle: a program that may do anything when it is read."""
    found = any(path.suffix in (".bin", ".pt", ".pth", ".ckpt") for path in folder.iterdir())
    return "; pickled weights are not read, convert them to safetensors" if found else ""


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
