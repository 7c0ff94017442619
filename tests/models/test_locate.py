"""A model folder is whole, or it is refused by name before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import save_file

from velocity.config.resolved import HEAD
from velocity.config.sections import ModelConfig
from velocity.errors import UserError
from velocity.models.locate import check_whole, locate


def np_zeros(count: int):
    import numpy as np

    return np.zeros(count, dtype=np.float32)


def make(folder: Path, shards: int = 1) -> Path:
    """A folder with a config and weights, in one file or in several with an index."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    if shards == 1:
        save_file({"a": np_zeros(4), "b": np_zeros(2)}, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    for i, name in enumerate(names):
        save_file({f"t{i}": np_zeros(4)}, folder / name)
    weight_map = {f"t{i}": name for i, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def refused(path: Path | str) -> list[str]:
    with pytest.raises(UserError) as caught:
        locate(ModelConfig(path=str(path)))
    assert caught.value.exit_status == 2
    return str(caught.value).splitlines()


@pytest.mark.parametrize("shards", [1, 3])
def test_a_whole_folder_is_found(tmp_path: Path, shards: int):
    assert locate(ModelConfig(path=str(make(tmp_path / "model", shards)))) == tmp_path / "model"


def test_a_folder_below_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "model")
    assert locate(ModelConfig(path="~/model")) == tmp_path / "model"


def test_a_finished_run_stands_for_its_model(tmp_path: Path):
    make(tmp_path / "run" / "model")
    (tmp_path / "run" / "job.yaml").write_text(HEAD)
    assert locate(ModelConfig(path=str(tmp_path / "run"))) == tmp_path / "run" / "model"


def test_a_model_folder_that_also_holds_a_users_job_file_is_no_run(tmp_path: Path):
    make(tmp_path / "model")
    (tmp_path / "model" / "job.yaml").write_text("task: sft\n")
    assert locate(ModelConfig(path=str(tmp_path / "model"))) == tmp_path / "model"


def test_a_run_that_is_not_finished_is_refused_with_the_command_that_finishes_it(tmp_path: Path):
    (tmp_path / "job.yaml").write_text(HEAD)
    assert refused(tmp_path) == [
        "the run is not finished: it has no model yet",
        f"  where: {tmp_path}",
        f"  fix:   velocity run {tmp_path}/job.yaml",
    ]


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:count])


def torn_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[8:12] = b"\x00\x00\x00\x00"
    path.write_bytes(bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), 1, "the model folder has no config.json"),
    "config cut": (lambda f: cut(f / "config.json", 5), 1, "the model's config.json is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), 1, "the model's config.json is not valid JSON"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), 1, "the model folder has no weights"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        1,
        "the model folder has no weights; pickled weights are not read, convert them to safetensors",
    ),
    "a byte short": (lambda f: cut(f / "model.safetensors", -1), 1, "the weights are truncated"),
    "a byte too many": (lambda f: (f / "model.safetensors").open("ab").write(b"x"), 1, "the weights are truncated"),
    "header cut": (lambda f: cut(f / "model.safetensors", 20), 1, "the weights are truncated"),
    "length cut": (lambda f: cut(f / "model.safetensors", 5), 1, "the weights are truncated"),
    "empty": (lambda f: cut(f / "model.safetensors", 0), 1, "the weights are truncated"),
    "header torn": (torn_header, 1, "the weights are truncated"),
    "a shard missing": (
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(), 3, "a shard of the model is missing",
    ),
    "a shard cut": (lambda f: cut(f / "model-00003-of-00003.safetensors", -3), 3, "the weights are truncated"),
    "index cut": (lambda f: cut(f / "model.safetensors.index.json", 9), 3, "the index of the weights is not valid"),
    "index without a map": (
        lambda f: (f / "model.safetensors.index.json").write_text("{}"), 3, "the index of the weights is not valid",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_a_folder_that_is_not_whole_is_refused_by_what_it_lacks(tmp_path: Path, name: str):
    damage, shards, says = DAMAGE[name]
    folder = make(tmp_path / "model", shards)
    damage(folder)
    lines = refused(folder)
    assert lines[0].startswith(says)
    assert lines[1].startswith(f"  where: {folder}")
    assert len(lines) == 3


def test_the_size_that_is_missing_is_said(tmp_path: Path):
    folder = make(tmp_path / "model")
    size = (folder / "model.safetensors").stat().st_size
    cut(folder / "model.safetensors", -5)
    assert f"{size - 5} bytes, of {size}" in refused(folder)[0]


def test_a_check_reads_no_tensor(tmp_path: Path):
    # a sparse file of 8 GiB: reading it whole would take seconds and all memory
    folder = make(tmp_path / "model")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1 << 31], "data_offsets": [0, 1 << 33]}}).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + (1 << 33))
    check_whole(folder)


@pytest.mark.parametrize("path", ["./absent", "/absent/model", "~/absent", "a/b/c", "what is this"])
def test_a_path_that_can_be_no_hub_id_is_not_looked_for_there(path: str):
    assert refused(path)[0] == f"no such model folder: {path}"


def test_a_name_that_is_neither_here_nor_on_the_hub_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    lines = refused("runs/pretrain")
    assert lines[0].startswith("'runs/pretrain' is no folder here, and the hub does not give it: ")
    assert len(lines) == 3
