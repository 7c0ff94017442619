"""The retrieval section: where passages come from, and by which method they are found."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from velocity.config.retrieval import RetrievalConfig


def test_a_path_is_enough():
    config = RetrievalConfig(path="corpus.jsonl")
    assert (config.method, config.passages, config.words) == ("bm25", 3, 120)


def test_embeddings_name_their_model_and_bm25_has_none():
    assert RetrievalConfig(path="corpus.jsonl", method="embeddings", model="models/e5").model == "models/e5"
    with pytest.raises(ValidationError, match="go together"):
        RetrievalConfig(path="corpus.jsonl", method="embeddings")
    with pytest.raises(ValidationError, match="go together"):
        RetrievalConfig(path="corpus.jsonl", model="models/e5")


def test_an_address_holds_no_password():
    with pytest.raises(ValidationError, match="must not hold a user or password"):
        RetrievalConfig(path="https://me:secret@example.org/corpus.jsonl")
