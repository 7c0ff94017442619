"""The audit of whole data sets: what is planted is found at its place, a clean set yields no alarm."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.making import chat, write_jsonl
from velocity.config.audit import AuditConfig
from velocity.config.sections import SourceConfig
from velocity.data import sources
from velocity.data.inspection import run
from velocity.data.inspection.findings import KINDS, Audit
from velocity.data.inspection.run import Inspection
from velocity.data.prepare import ListedSource

KEY = "AKIA" + "IOSFODNN7EXAMPLE"
LEXICON = re.findall(
    r"\w+",
    "attack buffer check data error field group hash input join key length memory name output process query request "
    "server token user value write access block cache device event file guard host index job kernel log module node",
)
FORMATS = ("text", "chat", "prompt_completion", "preference", "feedback")


def sentence(number: int, words: int = 60) -> str:
    """Some English-looking text; another one for each number."""
    rng = np.random.default_rng(number)
    picked = [LEXICON[i] for i in rng.integers(0, len(LEXICON), words)]
    return " ".join("the " + word if i % 4 == 0 else word for i, word in enumerate(picked)) + "."


def texts(start: int, count: int) -> list[dict[str, Any]]:
    return [{"text": sentence(number)} for number in range(start, start + count)]


def inspection(tmp_path: Path, sets: dict[str, list[Any]], processes: int = 2, **config: Any) -> Inspection:
    cache = tmp_path / "cache"

    def listed(source: Any) -> ListedSource:
        return ListedSource.of(
            SourceConfig.model_validate(source if isinstance(source, dict) else {"path": str(source)}), cache
        )

    made = {name: [listed(source) for source in several] for name, several in sets.items()}
    settings = AuditConfig.model_validate(config)
    return Inspection(made, FORMATS, settings, processes, cache, lambda said: None)


def audited(tmp_path: Path, sets: dict[str, list[Any]], **config: Any) -> Audit:
    made = inspection(tmp_path, sets, **config)
    return made.audit(made.config.acts("report", "drop", "error"))


def places(found: Audit, tmp_path: Path) -> list[tuple[str, str, str | None]]:
    """Kind, place and other place of each finding."""
    lines = (found.line(one) for one in found.findings)
    named = ((one["kind"], f"{one['file']}:{one['line']}", one["with"]) for one in lines)
    return [(kind, place.replace(f"{tmp_path}/", ""), other and other.replace(f"{tmp_path}/", ""))
            for kind, place, other in named]  # fmt: skip


def test_a_clean_set_yields_no_alarm(tmp_path: Path):
    train = write_jsonl(tmp_path / "train.jsonl", texts(0, 300))
    system = "You are a careful assistant. " * 10
    asked = [chat(f"What is item {i}?", sentence(1000 + i, 30), system=system) for i in range(101)]
    chats = write_jsonl(tmp_path / "chats.jsonl", asked[:100])
    unseen = write_jsonl(tmp_path / "unseen.jsonl", [*texts(2000, 50), asked[100]])
    found = audited(tmp_path, {"train": [train, chats], "unseen": [unseen]})
    assert found.findings == []
    assert found.rows == {"train": 400, "unseen": 51}
    assert found.counts() == dict.fromkeys(KINDS, 0)


@pytest.mark.parametrize("processes", [1, 3])
def test_what_is_planted_is_found_at_its_file_and_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int):
    monkeypatch.setattr(sources, "CHUNK_ROWS", 7)
    first, second, unseen = texts(0, 50), texts(100, 50), texts(200, 20)
    first[20] = {"text": f"Log in with {KEY} and go on."}
    first[30] = {"text": "Über die Größe".encode().decode("cp1252") + " " + sentence(900)}
    second[5] = {"text": first[3]["text"]}
    second[6] = {"text": first[4]["text"].replace(" key", " KEY", 1) + "\n"}
    second[40] = {"text": f"{sentence(901)} {unseen[8]['text']} {sentence(902)}"}
    german = "Der Angreifer kann eigene Befehle in die Datenbank einschleusen und Daten lesen, die ihm nicht gehören. "
    second[45] = {"text": german * 3}
    sets = {
        "train": [write_jsonl(tmp_path / "a.jsonl", first), write_jsonl(tmp_path / "b.jsonl", second)],
        "unseen": [write_jsonl(tmp_path / "u.jsonl", unseen)],
    }
    found = inspection(tmp_path, sets, processes).audit(KINDS)
    assert places(found, tmp_path) == [
        ("duplicates", "b.jsonl:6", "a.jsonl:4"),
        ("duplicates", "b.jsonl:7", "a.jsonl:5"),
        ("overlap", "b.jsonl:41", "u.jsonl:9"),
        ("overlap", "u.jsonl:9", "b.jsonl:41"),
        ("secrets", "a.jsonl:21", None),
        ("oddities", "a.jsonl:31", None),
        ("oddities", "b.jsonl:46", None),
    ]
    assert [one.share for one in found.findings][:4] == [1.0] * 4
    assert [one.reason for one in found.findings][-1].startswith("its language is de; 99% of train are en")
    assert KEY not in json.dumps(found.plain())


def test_a_table_is_audited_as_lines_are(tmp_path: Path):
    rows = [one["text"] for one in texts(0, 30)]
    rows[12] = KEY
    pa.parquet.write_table(pa.table({"body": [*rows, rows[4]]}), tmp_path / "a.parquet")
    source = {"path": str(tmp_path / "a.parquet"), "format": "text", "fields": {"text": "body"}}
    found = audited(tmp_path, {"train": [source]})
    assert places(found, tmp_path) == [("duplicates", "a.parquet:31", "a.parquet:5"), ("secrets", "a.parquet:13", None)]


def test_a_folder_of_files_is_one_source(tmp_path: Path):
    write_jsonl(tmp_path / "data" / "a.jsonl", texts(0, 10))
    write_jsonl(tmp_path / "data" / "b.jsonl", texts(5, 10))
    found = audited(tmp_path, {"train": [tmp_path / "data"]})
    assert places(found, tmp_path) == [
        ("duplicates", f"data/b.jsonl:{line}", f"data/a.jsonl:{line + 5}") for line in range(1, 6)
    ]


def test_rows_that_are_no_record_are_left_to_the_tokenising(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"text": KEY}) + '\nno json\n{"text": 5}\n\n' + json.dumps({"text": KEY})
    )
    found = audited(tmp_path, {"train": [tmp_path / "a.jsonl"]}, duplicates="off")
    assert places(found, tmp_path) == [("secrets", "a.jsonl:1", None), ("secrets", "a.jsonl:5", None)]
    assert found.rows == {"train": 2}


def test_duplicates_within_an_evaluation_set_are_its_own(tmp_path: Path):
    train = write_jsonl(tmp_path / "a.jsonl", texts(0, 10))
    unseen = write_jsonl(tmp_path / "u.jsonl", [*texts(100, 5), *texts(100, 1)])
    assert places(audited(tmp_path, {"train": [train], "unseen": [unseen]}, duplicates="drop"), tmp_path) == [
        ("duplicates", "u.jsonl:6", "u.jsonl:1")
    ]


Sets = dict[str, list[Any]]


@pytest.fixture(name="sets")
def _sets(tmp_path: Path) -> Sets:
    rows = [*texts(0, 10), {"text": KEY}, *texts(0, 1)]
    return {
        "train": [write_jsonl(tmp_path / "a.jsonl", rows)],
        "unseen": [write_jsonl(tmp_path / "u.jsonl", texts(3, 1))],
    }


@pytest.fixture(name="reads")
def _reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read."""
    read: list[str] = []
    proper: Callable[..., Any] = sources.read_chunks

    def counted(files: list[Any]) -> Any:
        read.extend(Path(file.path).name for file in files)
        return proper(files)

    monkeypatch.setattr(run, "read_chunks", counted)
    return read


def test_what_was_found_is_known_the_second_time(tmp_path: Path, sets: Sets, reads: list[str]):
    first = audited(tmp_path, sets)
    assert sorted(reads) == ["a.jsonl", "a.jsonl", "u.jsonl"], "candidates are read twice"
    reads.clear()
    again = audited(tmp_path, sets)
    assert reads == [] and again == first
    assert len(first.findings) == 4


def test_nothing_is_read_for_what_is_not_asked_for_and_what_is_known_is_told(
    tmp_path: Path, sets: Sets, reads: list[str]
):
    nothing = inspection(tmp_path, sets).audit(())
    assert (nothing.kinds, nothing.findings, reads) == ((), [], [])
    inspection(tmp_path, sets).audit(("secrets",))
    reads.clear()
    known = inspection(tmp_path, sets).audit(())
    assert (known.kinds, reads) == (("secrets",), [])
    assert places(known, tmp_path) == [("secrets", "a.jsonl:11", None)]
    assert inspection(tmp_path, sets, secrets="off").audit(()).kinds == ()


CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "similarity": ({"similarity": 0.9}, {"duplicates"}),
    "words": ({"words": 8}, {"overlap"}),
    "share": ({"share": 0.5}, {"overlap"}),
    "what becomes of it": ({"duplicates": "drop", "secrets": "error"}, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_has_its_own_kind_looked_for_anew(tmp_path: Path, sets: Sets, name: str):
    audited(tmp_path, sets)
    config, anew = CHANGES[name]
    assert set(KINDS) - set(inspection(tmp_path, sets, **config).audit(()).kinds) == anew


def test_other_contents_are_looked_at_anew(tmp_path: Path, sets: Sets):
    audited(tmp_path, sets)
    write_jsonl(tmp_path / "u.jsonl", texts(500, 2))
    assert inspection(tmp_path, sets).audit(()).kinds == ()


def test_the_same_contents_elsewhere_are_known_and_have_their_new_names(tmp_path: Path, sets: Sets):
    audited(tmp_path, sets)
    (tmp_path / "moved").mkdir()
    for name in ("a", "u"):
        (tmp_path / f"{name}.jsonl").rename(tmp_path / "moved" / f"{name}.jsonl")
    moved = {"train": [tmp_path / "moved" / "a.jsonl"], "unseen": [tmp_path / "moved" / "u.jsonl"]}
    found = inspection(tmp_path, moved).audit(())
    assert ("secrets", "moved/a.jsonl:11", None) in places(found, tmp_path)


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: text.replace('"rows"', '"rows "'),
                                    lambda text: text.replace("11", "10", 1), lambda text: "[]"])  # fmt: skip
def test_findings_that_were_damaged_are_looked_for_anew(tmp_path: Path, sets: Sets, damage: Callable[[str], str]):
    first = audited(tmp_path, sets)
    for path in (tmp_path / "cache" / "audit").iterdir():
        path.write_text(damage(path.read_text()))
    assert audited(tmp_path, sets) == first


def test_no_secret_lies_in_the_cache(tmp_path: Path, sets: Sets):
    audited(tmp_path, sets)
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len([path for path in kept if path.parent.name == "audit"]) == 4
    assert not any(KEY in path.read_text(errors="replace") for path in kept)
