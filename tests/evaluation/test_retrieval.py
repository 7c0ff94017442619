"""Retrieval: the passage that answers is found, the same twice, from the cache, and what is wrong is said."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import tiny_model_folder, write_jsonl
from velocity.config.retrieval import RetrievalConfig
from velocity.data.store import damage
from velocity.errors import UserError
from velocity.evaluation.retrieval import Embedder, Passage, Retriever, Scores, prepare_retrieval

TEXTS = (
    "# CWE-89: SQL Injection\n\nThe product builds a query from input that nobody checked.",
    "# CWE-79: Scripting\n\nA page shows what a stranger wrote, and browsers run it.",
    "# T1059.001: PowerShell\n\nAdversaries abuse commands of a shell that administrators use.",
)


@pytest.fixture(name="corpus")
def _corpus(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in TEXTS])


def prepared(corpus: Path, said: list[str] | None = None, **fields: Any) -> Retriever:
    report = said.append if said is not None else lambda _: None
    return prepare_retrieval(RetrievalConfig(path=str(corpus), **fields), corpus.parent / "cache", report)


@pytest.mark.parametrize(
    ("question", "best"),
    [
        ("Who builds a query from unchecked input?", 0),
        ("What is CWE-79?", 1),
        ("How is T1059.001 detected?", 2),
        ("SCRIPTING", 1),
    ],
)
def test_words_and_identifiers_find_the_passage_that_has_them(corpus: Path, question: str, best: int):
    found = prepared(corpus).find(question)[0]
    assert (found.text.split(":")[0], found.place) == (TEXTS[best][2:].split(":")[0], f"{corpus}:{best + 1}")


def test_the_score_is_bm25s_formula(corpus: Path):
    # Lucene's BM25, k1 1.5, b 0.75: "query" stands once, in one passage of three. Stop words (a, the, that, and, it,
    # of) and single letters are no words.
    found = prepared(corpus).find("query")
    counted = (
        "cwe 89 sql injection product builds query from input nobody checked",
        "cwe 79 scripting page shows what stranger wrote browsers run",
        "t1059 001 powershell adversaries abuse commands shell administrators use",
    )
    lengths = [text.count(" ") + 1 for text in counted]
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    score = idf / (1 + 1.5 * (1 - 0.75 + 0.75 * lengths[0] * 3 / sum(lengths)))
    assert len(found) == 1
    assert found[0].score == pytest.approx(score, rel=1e-5)


def test_nothing_in_common_finds_nothing(corpus: Path):
    assert prepared(corpus).passages("zebra") == []
    assert prepared(corpus).passages("") == []


def test_as_many_are_found_as_asked_for_best_first(corpus: Path):
    found = prepared(corpus, passages=2).find("CWE page query input")
    assert [passage.place for passage in found] == [f"{corpus}:1", f"{corpus}:2"]
    assert found[0].score > found[1].score


class Same:
    """An index to which every second passage is as good as the others of them, and the rest are worse."""

    def scores(self, question: str) -> Scores:
        return np.tile(np.array([1, 2], dtype=np.float32), 200)


def test_of_equals_the_earlier_comes_first():
    stored = [Passage(str(number), "") for number in range(400)]  # sorting so few as three keeps equals in order anyway
    assert Retriever(stored, Same(), 3).passages("any") == ["1", "3", "5"]


def test_a_second_start_reads_the_index_from_the_cache(corpus: Path):
    said: list[str] = []
    first, second = (prepared(corpus, said).find("CWE query") for _ in range(2))
    assert first == second
    assert len(said) == 1


def test_a_changed_corpus_or_another_cut_is_indexed_anew(corpus: Path):
    said: list[str] = []
    prepared(corpus, said)
    prepared(corpus, said, words=8)
    write_jsonl(corpus, [{"text": "Another corpus."}])
    assert prepared(corpus, said).passages("corpus") == ["Another corpus."]
    assert len(said) == 3


def test_what_lies_in_the_cache_is_proven_by_its_seal(corpus: Path):
    prepared(corpus)
    folder = next(path for path in (corpus.parent / "cache" / "retrieval").iterdir() if path.is_dir())
    assert damage(folder, corpus.parent / "cache") is None
    (folder / "passages.jsonl").write_text('["Forged.", "nowhere:1"]\n' * 3)
    assert prepared(corpus).find("query")[0].place == f"{corpus}:1"


def test_chats_and_other_names_of_fields_are_read_as_well(tmp_path: Path):
    rows = [{"body": "About cheese."}, {"body": "About wine."}]
    assert prepared(write_jsonl(tmp_path / "rows.jsonl", rows), fields={"text": "body"}).passages("wine")
    chat = {"messages": [{"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "With butter."}]}
    assert prepared(write_jsonl(tmp_path / "chats.jsonl", [chat])).passages("butter")


def test_a_row_that_is_no_record_is_named(tmp_path: Path):
    corpus = write_jsonl(tmp_path / "rows.jsonl", [{"text": "Good."}, {"text": 3}])
    with pytest.raises(UserError) as caught:
        prepared(corpus)
    assert f"{corpus}:2 field text" in str(caught.value)


def test_a_corpus_without_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no passage to find"):
        prepared(write_jsonl(tmp_path / "rows.jsonl", []))


def test_without_bm25s_the_package_is_named(corpus: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(UserError) as caught:
        prepared(corpus)
    assert "pip install" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 3


def test_embeddings_have_length_one_do_not_see_padding_and_find_the_same_text(corpus: Path):
    model = tiny_model_folder(corpus.parent / "model")
    embed = Embedder(model)
    alone, beside = embed([TEXTS[0]])[0], embed([TEXTS[0], TEXTS[0] * 5])[0]
    assert np.linalg.norm(alone) == pytest.approx(1, abs=1e-6)
    assert np.abs(alone - beside).max() < 1e-5
    retriever = prepared(corpus, method="embeddings", model=str(model), passages=1)
    for number, passage in enumerate(retriever.stored, 1):
        found = retriever.find(passage.text)[0]
        assert found.place == f"{corpus}:{number}"
        assert found.score == pytest.approx(1, abs=1e-5)


def test_an_embedding_model_that_is_not_there_is_said(corpus: Path):
    with pytest.raises(UserError, match="no such model folder"):
        prepared(corpus, method="embeddings", model="/nowhere")
