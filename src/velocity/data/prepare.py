"""Tokenises the sources of a job in several processes, before any process group exists; or finds them in the cache."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from velocity.config.sections import SourceConfig
from velocity.config.training import TrainingJob
from velocity.data import answers, encode, parse, records, sources, store, tokenizer, turns
from velocity.data.audit import audit, token_facts
from velocity.data.encode import Encoder, EncodingRules, LongChat
from velocity.data.fingerprint import content_hash, digest, folder_hash, remote_hash
from velocity.data.sources import Chunk, File, list_files, read_chunks
from velocity.data.store import Block, SequenceStore, StoreWriter, open_or_build
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash
from velocity.errors import JobError, UserError
from velocity.process import die_with_parent, ignore_stops

Report = Callable[[str], None]
CODE = (answers, encode, parse, records, sources, store, tokenizer, turns)  # what a tokenised store depends on


@dataclass(frozen=True)
class Reject:
    """A record that was not taken, and why."""

    file: int
    line: int
    field: str
    reason: str
    long_chat: bool


@dataclass(frozen=True)
class _Encoded:
    """What a tokenising process makes of a chunk."""

    block: Block
    rejects: list[Reject]
    records: int
    cut: int


class _Worker:
    """The state of a tokenising process; it is inherited by the fork, so nothing is loaded twice."""

    current: _Worker

    def __init__(self, encoder: Encoder, source: SourceConfig) -> None:
        self.encoder, self.source = encoder, source

    def work(self, chunk: Chunk) -> _Encoded:
        """The chunk's sequences and rejects, in the order of its rows."""
        sequences, lines, rejects = [], [], []
        rows = [(line, row) for line, row in enumerate(chunk.rows, chunk.first) if not chunk.raw or row.strip()]
        for line, row in rows:
            try:
                value = parse_json(row) if chunk.raw else row
                made = self.encoder.encode(
                    parse.parse(value, self.source.format, self.source.fields, self.encoder.rules.formats)
                )
                sequences += made
                lines += [line] * len(made)
            except records.RecordError as error:
                rejects.append(Reject(chunk.file, line, error.field, str(error), isinstance(error, LongChat)))
        block = Block.of(sequences, chunk.file, lines)
        return _Encoded(block, rejects, len(rows), sum(sequence.cut for sequence in sequences))


def parse_json(line: bytes) -> Any:
    """The value of a line; RecordError where it is not JSON."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise records.RecordError("", f"not valid JSON: {error}") from None


def _start_worker() -> None:
    die_with_parent()  # it holds the parent's locks, too
    ignore_stops()  # they are the parent's to answer, whether or not all of its processes hear of them


def _work(chunk: Chunk) -> _Encoded:
    return _Worker.current.work(chunk)


class Preparation:
    """Prepares every source of one job with one tokenizer."""

    def __init__(self, job: TrainingJob, model_folder: Path, report: Report) -> None:
        self.job, self.model_folder, self.report = job, model_folder, report
        self.cache = Path(job.data.cache).expanduser()
        self.rules = EncodingRules.of(job)
        self.tokenizer_hash = tokenizer_hash(model_folder, job.data.chat_template, self.cache)
        self._tokenizer: Any = None

    @property
    def tokenizer(self) -> Any:
        """Loaded when first needed: a job whose data is cached never needs it here."""
        if self._tokenizer is None:
            data, model = self.job.data, self.job.model
            self._tokenizer = load_tokenizer(self.model_folder, data.chat_template, remote_code=model.trust_remote_code)
        return self._tokenizer

    def source(self, source: SourceConfig) -> SequenceStore:
        """The source's tokenised store, from the cache or built now."""
        files = list_files(source)
        code = folder_hash((Path(module.__file__ or "") for module in CODE), self.cache)
        hashes = [file_hash(file, self.cache) for file in files]
        names = [(file.path, file.split, file.subset) for file in files]
        settings = [source.format, source.fields, asdict(self.rules), self.job.data.on_bad_record]
        key = digest([code, self.tokenizer_hash, settings, list(zip(names, hashes, strict=True))])
        place = self.cache / "sequences" / key
        return open_or_build(place, lambda folder: self._build(folder, source, files, hashes), self.cache)

    def _build(self, folder: Path, source: SourceConfig, files: list[File], hashes: list[str]) -> None:
        stats: dict[str, Any] = {"path": source.path, "files": [file.path for file in files], "hashes": hashes}
        counts = dict.fromkeys(("records", "sequences", "tokens", "trained", "rejected", "too_long", "cut"), 0)
        writer = StoreWriter(folder)
        facts = token_facts(self.tokenizer)
        with (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
            for done in self._encoded(source, files):
                for reject in done.rejects:
                    self._take_or_raise(reject, files)
                    line = {"file": files[reject.file].path, "line": reject.line, "field": reject.field}
                    rejected.write(json.dumps({**line, "reason": reject.reason}) + "\n")
                _add(counts, done)
                if len(done.block.lengths):
                    audit([done.block], facts, self.rules, stats["files"])
                    writer.append(done.block)
                self.report(f"tokenising {source.path}: {counts['records']:,} records, {counts['tokens']:,} tokens")
        if not counts["sequences"]:
            why = f"{counts['rejected']} records were rejected" if counts["rejected"] else "the data set is empty"
            raise UserError(f"no record to train on: {why}", source.path, "check the path and data.on_bad_record")
        writer.close({**stats, **counts})

    def _take_or_raise(self, reject: Reject, files: list[File]) -> None:
        """A record that the job lets us skip is counted; any other ends the job."""
        where = f"{files[reject.file].path}:{reject.line}" + (f" field {reject.field}" if reject.field else "")
        if reject.long_chat and self.rules.on_long_chat == "error":
            raise UserError(reject.reason, where, "raise data.sequence_length, or data.on_long_chat: cut or skip")
        if not reject.long_chat and self.job.data.on_bad_record == "error":
            raise UserError(reject.reason, where, "mend the record, or set data.on_bad_record: skip")

    def _encoded(self, source: SourceConfig, files: list[File]) -> Iterator[_Encoded]:
        """Chunks in order, encoded by a pool that is never more than a few chunks ahead: memory stays flat."""
        _Worker.current = _Worker(Encoder(self.tokenizer, self.rules), source)
        processes = self.job.data.processes or len(os.sched_getaffinity(0))
        pending: deque[Future[_Encoded]] = deque()
        context = multiprocessing.get_context("fork")
        others = multiprocessing.active_children()
        pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker)
        try:
            for chunk in read_chunks(files):
                pending.append(pool.submit(_work, chunk))
                if len(pending) > 2 * processes:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool:
            fix = "was memory short? set data.processes lower"
            raise JobError("a tokenising process was killed", source.path, fix) from None
        finally:
            with contextlib.suppress(RuntimeError):  # stopped while it starts its thread, it has none to join
                pool.shutdown(wait=True, cancel_futures=True)
            for process in multiprocessing.active_children():
                if process not in others:  # and none that tells its processes to leave: this one would wait for ever
                    process.kill()
                    process.join()


def _add(counts: dict[str, int], done: _Encoded) -> None:
    counts["records"] += done.records
    counts["sequences"] += len(done.block.lengths)
    counts["tokens"] += len(done.block.ids)
    counts["trained"] += int(done.block.trained.sum())
    counts["rejected"] += len(done.rejects)
    counts["too_long"] += sum(reject.long_chat for reject in done.rejects)
    counts["cut"] += done.cut


def file_hash(file: File, cache: Path) -> str:
    """The hash of a file's content, or of what a hub or a remote file system says of it."""
    if file.kind == "hub":
        return _hub_hash(file.path)
    if file.kind == "saved" and "://" not in file.path:
        return folder_hash((path for path in Path(file.path).rglob("*") if path.is_file()), cache)
    return remote_hash(file.path) if "://" in file.path else content_hash(Path(file.path), cache)


def _hub_hash(name: str) -> str:
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name).sha)
    except Exception as error:  # the hub's client has errors of its own, and its network library others
        raise sources.no_dataset(name, error) from None
