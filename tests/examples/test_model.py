"""When a model folder counts as whole. The conversion itself is left to the demo: it needs the real model."""

from __future__ import annotations

import json
import struct
from contextlib import nullcontext
from pathlib import Path

import pytest

import model


def write_model(_: Path, folder: Path) -> None:
    """Write what a conversion would: every required file, the weights of one tensor of 8 bytes."""
    folder.mkdir(exist_ok=True)
    for name in model.REQUIRED:
        (folder / name).write_text("{}")
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "_quiet", nullcontext)
    monkeypatch.setattr(model, "_write", write_model)
    monkeypatch.setattr(model, "_check", lambda _: None)


def test_a_converted_folder_is_whole_and_is_not_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.convert(tmp_path / "m.gguf", tmp_path / "model")
    assert model.is_whole(tmp_path / "model")
    monkeypatch.setattr(model, "_write", None)  # would fail if it were called
    model.convert(tmp_path / "m.gguf", tmp_path / "model")


@pytest.mark.parametrize("missing", model.REQUIRED)
def test_a_folder_without_one_file_is_not_whole_and_is_converted_again(tmp_path: Path, missing: str) -> None:
    write_model(tmp_path, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    assert not model.is_whole(tmp_path / "model")
    model.convert(tmp_path / "m.gguf", tmp_path / "model")
    assert model.is_whole(tmp_path / "model")


@pytest.mark.parametrize("kept_bytes", [0, 4, 20, -1])
def test_cut_weights_are_not_whole(tmp_path: Path, kept_bytes: int) -> None:
    write_model(tmp_path, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept_bytes])
    assert not model.is_whole(tmp_path / "model")


def test_no_folder_is_not_whole(tmp_path: Path) -> None:
    assert not model.is_whole(tmp_path / "model")


@pytest.mark.parametrize("step", ["_write", "_check"])
def test_a_conversion_that_fails_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*paths: Path) -> None:
        (paths[-1] / "config.json").write_text("{}")
        raise model.ModelError("no room")

    monkeypatch.setattr(model, step, fail)
    with pytest.raises(model.ModelError, match="no room"):
        model.convert(tmp_path / "m.gguf", tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(model.ModelError, match=r"thesis\.txt.*choose an empty or a new folder"):
        model.convert(tmp_path / "m.gguf", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
