"""Evaluation sets as items, from the cache or made now, before any process group exists. It loads no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from velocity.config.evaluate import AnySet, EvaluateJob
from velocity.data import answers, encode, parse, prompts, sources, tokenizer, turns
from velocity.data.encode import LongChat
from velocity.data.fingerprint import digest, folder_hash
from velocity.data.prepare import file_hash, parse_json
from velocity.data.prompts import to_json
from velocity.data.records import RecordError
from velocity.data.sources import Chunk, File, list_files, read_chunks
from velocity.data.store import build_once
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash
from velocity.errors import UserError
from velocity.evaluation import items, passages, retrieval, store
from velocity.evaluation.items import Augment, ItemRules, Reader, build_reader
from velocity.evaluation.passages import with_passages
from velocity.evaluation.retrieval import Retriever, prepare_retrieval
from velocity.evaluation.store import EvalStore, Item, StoreBuilder

Report = Callable[[str], None]
# What a store depends on.
CODE = (answers, encode, parse, prompts, sources, tokenizer, turns, items, passages, retrieval, store)


@dataclass(frozen=True)
class _Set:
    """A set as it is to be read."""

    source: AnySet
    files: Sequence[File]
    hashes: Sequence[str]


class Preparation:
    """Prepares the sets of one job with one tokenizer."""

    def __init__(self, job: EvaluateJob, model_folder: Path, report: Report) -> None:
        self.job, self.model_folder, self.report = job, model_folder, report
        self.cache = Path(job.data.cache).expanduser()
        self.rules = ItemRules(job.data.sequence_length, job.data.on_long_chat)
        self.words = tokenizer_hash(model_folder, job.data.chat_template, self.cache)
        self._tokenizer: Any = None
        self._retriever: Retriever | None = None

    @property
    def tokenizer(self) -> Any:
        """Loaded when first needed: a job whose sets are cached never needs it here."""
        if self._tokenizer is None:
            remote_code = self.job.model.trust_remote_code
            self._tokenizer = load_tokenizer(self.model_folder, self.job.data.chat_template, remote_code=remote_code)
        return self._tokenizer

    def items(self, name: str) -> EvalStore:
        """The set's items; UserError for the first row that is wrong, unless the job says to skip it."""
        source = self.job.data.eval[name]
        files = list_files(source)
        wanted = _Set(source, files, [file_hash(file, self.cache) for file in files])
        code = folder_hash((Path(module.__file__ or "") for module in CODE), self.cache)
        names = [(file.path, file.split, file.subset) for file in files]
        settings = [source.kind, source.format, source.fields, asdict(self.rules), self.job.data.on_bad_record]
        asked = self.retrieval_key() if source.kind != "perplexity" else None
        place = self.cache / "evaluation" / digest([code, self.words, settings, asked, names, wanted.hashes])
        build_once(place, lambda folder: self._build(folder, wanted), self.cache)
        return EvalStore(place)

    def retrieval_key(self) -> Any:
        """What decides which passages stand before a question; None where none do."""
        asked = self.job.retrieval
        if asked is None:
            return None
        return [asked.model_dump(), [file_hash(file, self.cache) for file in list_files(asked)]]

    def _augment(self, source: AnySet) -> Augment:
        asked = self.job.retrieval
        if asked is None or source.kind == "perplexity":
            return lambda question: question
        if self._retriever is None:
            self._retriever = prepare_retrieval(asked, self.cache, self.report)
        found = self._retriever
        return lambda question: with_passages(question, found.passages(question))

    def _build(self, folder: Path, wanted: _Set) -> None:
        reader = build_reader(wanted.source, self.tokenizer, self.rules, self._augment(wanted.source))
        made, rejects = StoreBuilder(folder), list[dict[str, Any]]()
        counts = {"records": 0, "rejected": 0}
        for chunk in read_chunks(wanted.files):
            made.write(list(self._items(reader, chunk, wanted, counts, rejects)))
            self.report(f"reading {wanted.source.path}: {len(made.lengths):,} rows")
        if not made.lengths:
            why = f"{counts['rejected']} rows were rejected" if counts["rejected"] else "there is no row"
            raise UserError(f"nothing to measure on: {why}", wanted.source.path, "check the path and its fields")
        lines = "".join(json.dumps(line) + "\n" for line in rejects)
        (folder / "rejected.jsonl").write_text(lines, encoding="utf-8")
        paths = [file.path for file in wanted.files]
        made.close({**counts, "kind": wanted.source.kind, "files": paths, "hashes": list(wanted.hashes)})

    def _items(  # noqa: PLR0913 - a chunk of rows, and what is kept of them
        self, reader: Reader, chunk: Chunk, wanted: _Set, counts: dict[str, int], rejects: list[dict[str, Any]]
    ) -> Iterator[Item]:
        path = wanted.files[chunk.file].path
        for line, raw in enumerate(chunk.rows, chunk.first):
            if chunk.raw and not raw.strip():
                continue
            counts["records"] += 1
            try:
                row = parse_json(raw) if chunk.raw else raw
                item = reader.item(row)
            except RecordError as error:
                self._take_or_raise(error, f"{path}:{line}" + (f" field {error.field}" if error.field else ""))
                counts["rejected"] += 1
                rejects.append({"file": path, "line": line, "field": error.field, "reason": str(error)})
                continue
            yield Item(item.prompt, item.options, item.bytes, item.told, to_json(row))

    def _take_or_raise(self, error: RecordError, where: str) -> None:
        """A row that the job lets us skip is left out; any other ends the job."""
        data = self.job.data
        if isinstance(error, LongChat):
            if data.on_long_chat == "error":
                raise UserError(str(error), where, "raise data.sequence_length, or data.on_long_chat: cut or skip")
        elif data.on_bad_record == "error":
            raise UserError(str(error), where, "mend the row, or set data.on_bad_record: skip")
