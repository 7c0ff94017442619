"""Prompts of a generate job: rows become token ids, on disk beside the rows themselves. It knows no engine and no rank.

A store is written to a temporary folder and renamed when whole, so a folder of the right name is always whole.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
from jinja2.sandbox import SandboxedEnvironment

from velocity.config.generate import GenerateJob, PromptsConfig
from velocity.data import encode, parse, prepare, sources, store, tokenizer, turns
from velocity.data.encode import adds_bos
from velocity.data.fingerprint import digest, folder_hash
from velocity.data.parse import characters, parse_prompt
from velocity.data.prepare import file_hash, parse_json
from velocity.data.records import RecordError, Text
from velocity.data.sources import Chunk, File, list_files, read_chunks
from velocity.data.store import ArrowRows, build_once
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash
from velocity.data.turns import Ids, Turns
from velocity.errors import UserError

SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "id": pa.string(), "row": pa.string()})
SHARED_AT_LEAST = 4  # tokens; to keep fewer apart is not worth a forward of their own
MODULES = (encode, parse, prepare, sources, store, tokenizer, turns)


class LongPrompt(RecordError):
    """A prompt of more tokens than the job allows."""


class PromptStore:
    """Random access to prompts and to the rows they came from; memory-mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stats: dict[str, Any] = json.loads((folder / "stats.json").read_text())
        self.lengths: Ids = np.load(folder / "lengths.npy", mmap_mode="r")
        self._rows = ArrowRows(folder / "prompts.arrow")

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def shared(self) -> list[int]:
        """Token ids that all prompts begin with, as a chat template's system turn; empty where they are few."""
        ids: list[int] = self.stats["shared"]
        return ids

    def ids(self, index: int) -> list[int]:
        """The prompt's tokens."""
        return list(self._value("ids", index))

    def id(self, index: int) -> str:
        """The row's stable name: from its content, and which one it is of several that are alike."""
        return str(self._value("id", index))

    def row(self, index: int) -> dict[str, Any]:
        """The row as it was read."""
        row: dict[str, Any] = json.loads(self._value("row", index))
        return row

    def _value(self, column: str, index: int) -> Any:
        batch, row = self._rows.find(index)
        return batch.column(column)[row].as_py()


def prepare_prompts(job: GenerateJob, folder: Path, limit: int | None, report: Callable[[str], None]) -> PromptStore:
    """The job's prompts as tokens of the folder's model, from the cache or made now.

    `limit` bounds a prompt's tokens. UserError for the first row that is wrong, unless the job says to skip it.
    """
    data, cache = job.data, Path(job.data.cache).expanduser()
    found = [(source, list_files(source)) for source in data.prompts]
    files = [file for _, listed in found for file in listed]
    hashes = [file_hash(file, cache) for file in files]
    code = folder_hash((Path(module.__file__ or "") for module in MODULES), cache)
    settings = [[source.model_dump() for source in data.prompts], limit, data.on_long_prompt, data.on_bad_record]
    words = tokenizer_hash(folder, data.chat_template, cache)
    names = [(file.path, file.split, file.subset) for file in files]
    key = digest([code, Path(__file__).read_text(), words, settings, names, hashes])

    def build(temporary: Path) -> None:
        made = load_tokenizer(folder, data.chat_template, remote_code=job.model.trust_remote_code)
        _Builder(job, made, limit, report).build(temporary, found, hashes)

    place = cache / "prompts" / key
    build_once(place, build, cache)
    return PromptStore(place)


class _Builder:
    """Writes a store; memory holds one chunk of rows, and some hundred bytes of each row to tell it from others."""

    def __init__(self, job: GenerateJob, made: Any, limit: int | None, report: Callable[[str], None]) -> None:
        self.job, self.limit, self.report, self.turns = job, limit, report, Turns(made)
        self.bos = [made.bos_token_id] if adds_bos(made) else []
        self.seen: Counter[str] = Counter()
        self.counts = dict.fromkeys(("records", "prompts", "tokens", "rejected", "too_long", "cut"), 0)
        self.lengths: list[int] = []
        self.shared: list[int] | None = None
        self.rejects: list[dict[str, Any]] = []

    def build(self, folder: Path, found: Sequence[tuple[PromptsConfig, list[File]]], hashes: Sequence[str]) -> None:
        """The folder holds the prompts of all sources in order."""
        with pa.OSFile(str(folder / "prompts.arrow"), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for source, files in found:
                read = _Reader(source, self.turns, self.bos)
                for chunk in read_chunks(files):
                    made = list(self._take(read, chunk, files))
                    columns = [list(column) for column in zip(*made, strict=True)] if made else []
                    if columns:
                        writer.write_batch(pa.record_batch(columns, schema=SCHEMA))
                    self.report(f"reading {source.path}: {self.counts['prompts']:,} prompts")
        paths = [file.path for _, files in found for file in files]
        if not self.counts["prompts"]:
            why = f"{self.counts['rejected']} rows were rejected" if self.counts["rejected"] else "there is no row"
            raise UserError(f"no prompt to answer: {why}", paths[0], "check the path and data.on_bad_record")
        np.save(folder / "lengths.npy", np.array(self.lengths, dtype=np.int32))
        lines = "".join(json.dumps(line) + "\n" for line in self.rejects)
        (folder / "rejected.jsonl").write_text(lines, encoding="utf-8")
        shared = self.shared or []
        stats = {**self.counts, "files": paths, "hashes": list(hashes),
                 "shared": shared if len(shared) >= SHARED_AT_LEAST else []}  # fmt: skip
        (folder / "stats.json").write_text(json.dumps(stats, indent=1))

    def _take(self, read: _Reader, chunk: Chunk, files: Sequence[File]) -> Iterator[tuple[list[int], str, str]]:
        for line, raw in enumerate(chunk.rows, chunk.first):
            if chunk.raw and not raw.strip():
                continue
            self.counts["records"] += 1
            try:
                row = parse_json(raw) if chunk.raw else raw
                text = characters(to_json(row), "")
                ids = self._fit(read.ids(row))
            except RecordError as error:
                self._reject(error, files[chunk.file].path, line)
                continue
            self.counts["prompts"] += 1
            self.counts["tokens"] += len(ids)
            self.lengths.append(len(ids))
            self.shared = common_start(ids if self.shared is None else self.shared, ids)
            yield ids, name_of(text, self.seen), text

    def _fit(self, ids: list[int]) -> list[int]:
        if not ids:
            raise RecordError("", "the prompt has no token")
        if self.limit is None or len(ids) <= self.limit:
            return ids
        if self.job.data.on_long_prompt != "cut":
            raise LongPrompt("prompt", f"the prompt has {len(ids)} tokens, and {self.limit} are allowed")
        self.counts["cut"] += 1
        head = self.bos if ids[: len(self.bos)] == self.bos else []
        return [*head, *ids[len(ids) - self.limit + len(head) :]]

    def _reject(self, error: RecordError, path: str, line: int) -> None:
        """A row that the job lets us skip is counted; any other ends the job."""
        long, data = isinstance(error, LongPrompt), self.job.data
        where = f"{path}:{line}" + (f" field {error.field}" if error.field else "")
        if long and data.on_long_prompt == "error":
            fix = "raise data.max_prompt_tokens, lower generation.max_new_tokens, or data.on_long_prompt: cut or skip"
            raise UserError(str(error), where, fix)
        if not long and data.on_bad_record == "error":
            raise UserError(str(error), where, "mend the row, or set data.on_bad_record: skip")
        self.counts["rejected"] += 1
        self.counts["too_long"] += long
        self.rejects.append({"file": path, "line": line, "field": error.field, "reason": str(error)})


def name_of(text: str, seen: Counter[str]) -> str:
    """A row's name: the same wherever it stands; of rows that are alike, each further one has its number behind it."""
    name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    before = seen[name]
    seen[name] += 1
    return f"{name}-{before}" if before else name


class _Reader:
    """Rows of one source to token ids."""

    def __init__(self, source: PromptsConfig, spoken: Turns, bos: list[int]) -> None:
        self.source, self.turns, self.bos = source, spoken, bos
        self.template = None if source.template is None else _compile(source.template)

    def ids(self, row: Any) -> list[int]:
        """The prompt's tokens; RecordError where the row holds none."""
        if self.template is not None:
            row = {"text" if self.source.format == "text" else "prompt": self._render(row)}
        prompt = parse_prompt(row, self.source.format, self.source.fields)
        if isinstance(prompt, Text):
            return [*self.bos, *self.turns.ids(prompt.text, plain=True)]
        if self.turns.tokenizer.chat_template is None:
            what = "the tokenizer has no chat template: set data.chat_template to a Jinja file, or format: text"
            raise RecordError("messages", what)
        return self.turns.ids(self.turns.render(prompt, prompt=True))

    def _render(self, row: Any) -> str:
        assert self.template is not None, "asked only where there is one"
        if not isinstance(row, dict):
            raise RecordError("", f"a record is a JSON object, not {type(row).__name__}")
        named = {**row, **{name: row[there] for name, there in self.source.fields.items() if there in row}}
        try:
            return self.template.render(named)
        except Exception as error:  # what a template computes has errors of every kind
            raise RecordError("", f"the template cannot be filled: {error}") from None


def _compile(text: str) -> jinja2.Template:
    try:
        return SandboxedEnvironment(undefined=jinja2.StrictUndefined).from_string(text)
    except jinja2.TemplateError as error:
        raise UserError(f"not a valid template: {error}", "data.prompts", "e.g. What is {{ name }}?") from None


def common_start(one: list[int], other: list[int]) -> list[int]:
    """What both begin with; never all of a prompt, whose last token is what a completion follows."""
    end = min(len(one), len(other) - 1)
    for i in range(end):
        if one[i] != other[i]:
            return one[:i]
    return one[:end]


def to_json(row: Any) -> str:
    """A row as JSON, also where a table gave it times, bytes or numbers that are none."""
    try:
        return json.dumps(row, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        return json.dumps(_without_nan(row), ensure_ascii=False, default=str)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
