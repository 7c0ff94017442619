"""Finds the passages of a corpus that go with a question, by words in common or by embeddings.

It knows no model under test. What is built of a corpus, passages and an index of them, is kept in the cache under a
hash of its content.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from velocity.config.retrieval import RetrievalConfig
from velocity.config.sections import ModelConfig
from velocity.data.fingerprint import digest, folder_hash
from velocity.data.parse import parse
from velocity.data.prepare import file_hash, parse_json
from velocity.data.records import RecordError
from velocity.data.sources import File, list_files, read_chunks
from velocity.data.store import build_once
from velocity.errors import UserError
from velocity.evaluation import passages as cutting
from velocity.evaluation.passages import cut, text_of

Scores = NDArray[np.float32]
Vectors = NDArray[np.float32]
PASSAGES, INDEX, VECTORS = "passages.jsonl", "index", "vectors.npy"
BATCH = 32  # texts that are embedded at once
LONGEST = 512  # tokens of a text that is embedded: what most embedding models were trained with


@dataclass(frozen=True)
class Passage:
    """Some sentences of the corpus, where they stand (file:line), and how well they go with a question."""

    text: str
    place: str
    score: float = 0.0


class Index(Protocol):
    """Says how well each passage goes with a question; 0 or less is not at all."""

    def scores(self, question: str) -> Scores:
        """A number for each passage, in their order."""


class Retriever:
    """The passages of a corpus, and the few of them that go with a question."""

    def __init__(self, stored: Sequence[Passage], index: Index, count: int) -> None:
        self.stored, self.index, self.count = stored, index, count

    def find(self, question: str) -> list[Passage]:
        """The best passages, best first, of equal ones the earlier; fewer where no more have anything in common."""
        scores = self.index.scores(question)
        best = np.argsort(-scores, kind="stable")[: self.count]
        return [Passage(self.stored[i].text, self.stored[i].place, float(scores[i])) for i in best if scores[i] > 0]

    def passages(self, question: str) -> list[str]:
        """The texts of the best passages, best first."""
        return [passage.text for passage in self.find(question)]


def prepare_retrieval(config: RetrievalConfig, cache: Path, report: Callable[[str], None]) -> Retriever:
    """The retriever of a corpus, from the cache or built now; UserError where the corpus is empty or a row is wrong."""
    build, load, made_from = METHODS[config.method](config)
    files = list_files(config)
    code = folder_hash([Path(__file__), Path(cutting.__file__)], cache)
    names = [(file.path, file.split, file.subset) for file in files]
    settings = [config.format, config.fields, config.words, config.method, made_from]
    folder = cache / "retrieval" / digest([code, settings, names, [file_hash(file, cache) for file in files]])

    def fill(temporary: Path) -> None:
        report(f"cutting {config.path} into passages of {config.words} words")
        found = list(_read(config, files))
        if not found:
            raise UserError("no passage to find: the corpus holds no text", config.path, "check retrieval.path")
        lines = (json.dumps([passage.text, passage.place], ensure_ascii=False) + "\n" for passage in found)
        (temporary / PASSAGES).write_text("".join(lines), encoding="utf-8")
        build([passage.text for passage in found], temporary)

    build_once(folder, fill, cache)
    with (folder / PASSAGES).open(encoding="utf-8") as stream:
        stored = [Passage(*json.loads(line)) for line in stream]
    return Retriever(stored, load(folder), config.passages)


def _read(config: RetrievalConfig, files: Sequence[File]) -> Iterator[Passage]:
    """The passages of every record, in order."""
    for chunk in read_chunks(files):
        for line, raw in enumerate(chunk.rows, chunk.first):
            if chunk.raw and not raw.strip():
                continue
            place = f"{files[chunk.file].path}:{line}"
            try:
                record = parse(parse_json(raw) if chunk.raw else raw, config.format, config.fields)
            except RecordError as error:
                where = place + (f" field {error.field}" if error.field else "")
                raise UserError(str(error), where, "mend the row, or see retrieval.fields") from None
            for text in cut(text_of(record), config.words):
                yield Passage(text, place)


Method = tuple[Callable[[Sequence[str], Path], None], Callable[[Path], Index], Any]


class WordIndex:
    """BM25 as Lucene computes it (bm25s, arXiv 2407.03618): words in common, rare ones more, without stemming."""

    def __init__(self, found: Any, count: int) -> None:
        self.found, self.count = found, count

    def scores(self, question: str) -> Scores:
        """A number for each passage: 0 where no word is in common."""
        words = [word for word in _words([question])[0] if word in self.found.vocab_dict]
        if not words:
            return np.zeros(self.count, dtype=np.float32)
        scores: Scores = self.found.get_scores(words)
        return scores


def _by_words(_: RetrievalConfig) -> Method:
    bm25s = _bm25s()

    def build(texts: Sequence[str], folder: Path) -> None:
        index = bm25s.BM25()
        index.index(_words(texts), show_progress=False)
        (folder / INDEX).mkdir()
        index.save(folder / INDEX, show_progress=False)
        for path in sorted((folder / INDEX).iterdir()):  # what is kept in the cache lies flat
            path.rename(folder / path.name)
        (folder / INDEX).rmdir()

    def load(folder: Path) -> Index:
        index = bm25s.BM25.load(folder, load_corpus=False, show_progress=False)
        return WordIndex(index, int(index.scores["num_docs"]))

    return build, load, bm25s.__version__


def _words(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = _bm25s().tokenize(list(texts), return_ids=False, show_progress=False)
    return found


def _bm25s() -> Any:
    try:
        import bm25s
    except ImportError:
        what = "retrieval.method: bm25 needs the package bm25s, which is not installed"
        raise UserError(what, "retrieval", "pip install 'profoundvelocity[evaluation]'") from None
    return bm25s


class VectorIndex:
    """The angle between the embedding of a question and that of each passage."""

    def __init__(self, vectors_ND: Vectors, embed: Callable[[Sequence[str]], Vectors]) -> None:  # noqa: N803
        self.vectors_ND, self.embed = vectors_ND, embed

    def scores(self, question: str) -> Scores:
        """The cosine to each passage."""
        scores: Scores = self.vectors_ND @ self.embed([question])[0]
        return scores


def _by_embeddings(config: RetrievalConfig) -> Method:
    from velocity.models.locate import locate

    folder = locate(ModelConfig(path=config.model or ""))
    embed = Embedder(folder)

    def build(texts: Sequence[str], place: Path) -> None:
        np.save(place / VECTORS, embed(texts))

    def load(place: Path) -> Index:
        return VectorIndex(np.load(place / VECTORS), embed)

    return build, load, digest([(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir()])


class Embedder:
    """A Hugging Face encoder whose last hidden states are averaged over a text's tokens; loaded when first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._loaded: Any = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """A vector of length 1 for each text."""
        import torch

        tokenizer, model = self._parts()
        rows = []
        for first in range(0, len(texts), BATCH):
            some = list(texts[first : first + BATCH])
            batch = tokenizer(some, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            with torch.inference_mode():
                hidden_BSD = model(  # noqa: N806
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
                ).last_hidden_state.float()
            mask_BS1 = batch["attention_mask"].unsqueeze(-1)  # noqa: N806
            mean_BD = (hidden_BSD * mask_BS1).sum(1) / mask_BS1.sum(1)  # noqa: N806
            rows.append(torch.nn.functional.normalize(mean_BD, dim=-1).numpy())
        return np.concatenate(rows).astype(np.float32)

    def _parts(self) -> Any:
        if self._loaded is None:
            from transformers import AutoModel, AutoTokenizer

            from velocity.models.quiet import quieten

            quieten()
            tokenizer = AutoTokenizer.from_pretrained(self.folder)
            if tokenizer.pad_token is None:
                tokenizer.pad_token = tokenizer.eos_token  # hidden by the mask, so any token does
            self._loaded = tokenizer, AutoModel.from_pretrained(self.folder, use_safetensors=True).eval()
        return self._loaded


METHODS: dict[str, Callable[[RetrievalConfig], Method]] = {"bm25": _by_words, "embeddings": _by_embeddings}
