"""Puts the example's scripts on the path and makes tiny wheels like those that it reads. No network."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "security"))

from entities import split_of
from sources import CARRIERS, CLUSTERS, CWE_XML, SPEECH_TABLE, SPEECHES

SHARED = "Validate every input against a strict list of what is allowed and refuse all else before it is used anywhere."
RARE = "Run the parser of this old format in a process of its own that can neither open files nor reach the network."

WEAKNESS = """<Weakness ID="{n}" Name="Flaw {n}" Status="Draft">
  <Description>Product{n} trusts caller{n} about the length{n} of buffer{n},
     and so reads{n} beyond the end{n} that number {n} marks [REF-{n}].</Description>
  <Related_Weaknesses><Related_Weakness Nature="ChildOf" CWE_ID="{parent}" View_ID="1000"/></Related_Weaknesses>
  <Potential_Mitigations>
    <Mitigation><Phase>Implementation</Phase><Description>{shared}</Description></Mitigation>
    <Mitigation><Phase>Testing</Phase><Description><x:p>Test number {n}: send the caller c{n} lengths that lie about
      buffer {n}, one byte short and one byte long, and see what comes back.</x:p></Description></Mitigation>
  </Potential_Mitigations>
</Weakness>"""


def cwe_xml(numbers: list[int]) -> str:
    """Return a CWE catalogue of these weaknesses; the last one is deprecated."""
    splits = [split_of(f"CWE-{n}") for n in numbers]
    pair = {splits.index("train"), splits.index("unseen")}  # one weakness of each says what no other says
    flaws = [
        WEAKNESS.format(n=n, parent=numbers[0], shared=RARE if place in pair else SHARED)
        for place, n in enumerate(numbers)
    ]
    flaws[-1] = flaws[-1].replace('Status="Draft"', 'Status="Deprecated"')
    inner = "".join(flaws)
    space = 'xmlns="http://cwe.mitre.org/cwe-7" xmlns:x="http://www.w3.org/1999/xhtml"'
    return f"<Weakness_Catalog {space}><Weaknesses>{inner}</Weaknesses></Weakness_Catalog>"


def technique(number: int, **changes: Any) -> dict[str, Any]:
    """Return one technique as the MISP galaxy writes it."""
    text = (
        f"Adversaries may misuse feature {number} of a host to stay there.(Citation: Report {number}) They use"
        f" <code>tool{number}.exe</code> as in [Other Way](https://attack.mitre.org/techniques/T1000) number {number}."
    )
    meta = {"external_id": f"T{number}", "kill_chain": ["attack-Linux:defense-evasion"], "mitre_platforms": ["Linux"]}
    return {"uuid": f"u{number}", "value": f"Way {number} - T{number}", "description": text, "meta": meta, **changes}


def galaxy(numbers: list[int]) -> dict[str, list[dict[str, Any]]]:
    """Return the values of the three cluster files: a mitigation stops, and a component shows, every technique."""
    dead = technique(1, related=[{"dest-uuid": "u2", "type": "revoked-by"}])
    stop: dict[str, Any] = {"uuid": "m", "value": "Lock Down - M1042", "meta": {"external_id": "M1042"}}
    stop |= {"description": "Lock it.", "related": [{"dest-uuid": f"u{n}", "type": "mitigates"} for n in numbers]}
    show: dict[str, Any] = {"uuid": "d", "value": "File Access", "meta": {}, "description": "A file is read."}
    show |= {"related": [{"dest-uuid": f"u{n}", "type": "detects"} for n in numbers]}
    techniques = [*(technique(number) for number in numbers), dead]
    return {"attack-pattern": techniques, "course-of-action": [stop], "data-component": [show]}


def speech(word: str) -> str:
    """Return a speech of 40 paragraphs of 25 words with what a transcript puts between."""
    said = " ".join([word] * 24)
    return "The President. My friends.\n\n" + f"[Applause] {said} end.\n\nAudience members. Boo!\n\n" * 40


def write_wheel(path: Path, members: Mapping[str, str]) -> Path:
    """Make the path a wheel that holds these files."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(name="wheels")
def _wheels(tmp_path: Path) -> dict[str, Path]:
    """Three tiny wheels with entities of every split."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    clusters = {
        f"{CLUSTERS}/mitre-{k}.json": json.dumps({"values": v}) for k, v in galaxy(list(range(1100, 1140))).items()
    }
    names = {"2026-A-1": "today", "1997-A-1": "recent", "1996-B-1": "before", "1947-C-1": "long"}
    names |= {"1946-C-1": "ancient", "1991-D-1": "written"}
    table = "fileid,sotu_type\n" + "".join(
        f"{n},{'written' if w == 'written' else 'spoken'}\n" for n, w in names.items()
    )
    speeches = {f"{SPEECHES}{name}.txt": speech(word) for name, word in names.items()}
    return {
        "cwe": write_wheel(folder / CARRIERS["cwe"].wheel, {CWE_XML: cwe_xml(list(range(1, 41)))}),
        "attack": write_wheel(folder / CARRIERS["attack"].wheel, clusters),
        "speeches": write_wheel(folder / CARRIERS["speeches"].wheel, {SPEECH_TABLE: table, **speeches}),
    }


@pytest.fixture(name="unseen_ids")
def _unseen_ids() -> set[str]:
    """The ids of the tiny wheels that the split keeps from training."""
    every = [f"CWE-{n}" for n in range(1, 40)] + [f"T{n}" for n in range(1100, 1140)] + ["M1042"]
    return {entity_id for entity_id in every if split_of(entity_id) == "unseen"}
