"""Tokenises the sources of a job in several processes, before any process group exists; or finds them in the cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from velocity.config.sections import SourceConfig
from velocity.config.training import TrainingJob
from velocity.data import answers, encode, parse, records, sources, store, tokenizer, turns
from velocity.data.audit import audit, token_facts
from velocity.data.encode import Encoder, EncodingRules, LongChat
from velocity.data.fingerprint import content_hash, digest, folder_hash, remote_hash
from velocity.data.pool import in_order
from velocity.data.sources import Chunk, File, list_files, read_chunks
from velocity.data.store import Block, SequenceStore, StoreWriter, open_or_build
from velocity.data.tokenizer import load_tokenizer, tokenizer_hash
from velocity.errors import UserError

Report = Callable[[str], None]
LeftOut = Mapping[tuple[int, int], Mapping[str, Any]]  # file number and line: why the row is left out, with its reason
CODE = (answers, encode, parse, records, sources, store, tokenizer, turns)  # what a tokenised store depends on


@dataclass(frozen=True)
class ListedSource:
    """A source with its files, and the hash of each."""

    source: SourceConfig
    files: list[File]
    hashes: list[str]

    @classmethod
    def of(cls, source: SourceConfig, cache: Path) -> ListedSource:
        """What the source is now."""
        files = list_files(source)
        return cls(source, files, [file_hash(file, cache) for file in files])


@dataclass(frozen=True)
class Reject:
    """A record that was not taken, and why; `audited` where that was decided before it was encoded."""

    file: int
    line: int
    field: str
    reason: str
    long_chat: bool = False
    audited: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _Encoded:
    """What a tokenising process makes of a chunk."""

    block: Block
    rejects: list[Reject]
    records: int
    cut: int


class _Worker:
    """The state of a tokenising process."""

    def __init__(self, encoder: Encoder, source: SourceConfig, left_out: LeftOut) -> None:
        self.encoder, self.source, self.left_out = encoder, source, left_out

    def work(self, chunk: Chunk) -> _Encoded:
        """The chunk's sequences and rejects, in the order of its rows."""
        sequences, lines, rejects = [], [], []
        rows = [(line, row) for line, row in enumerate(chunk.rows, chunk.first) if not chunk.raw or row.strip()]
        for line, row in rows:
            if audited := self.left_out.get((chunk.file, line)):
                rejects.append(Reject(chunk.file, line, "", audited["reason"], audited=audited))
                continue
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
        return self.store(ListedSource.of(source, self.cache), {})

    def store(self, listed: ListedSource, left_out: LeftOut) -> SequenceStore:
        """The store of a source without some of its rows, which count as rejected."""
        code = folder_hash((Path(module.__file__ or "") for module in CODE), self.cache)
        source = listed.source
        names = [(file.path, file.split, file.subset) for file in listed.files]
        settings = [source.format, source.fields, asdict(self.rules), self.job.data.on_bad_record]
        without = [sorted((*place, dict(why)) for place, why in left_out.items())] if left_out else []
        key = digest([code, self.tokenizer_hash, settings, list(zip(names, listed.hashes, strict=True)), *without])
        place = self.cache / "sequences" / key
        return open_or_build(place, lambda folder: self._build(folder, listed, left_out), self.cache)

    def _build(self, folder: Path, listed: ListedSource, left_out: LeftOut) -> None:
        source, files = listed.source, listed.files
        stats: dict[str, Any] = {"path": source.path, "files": [file.path for file in files], "hashes": listed.hashes}
        counts = dict.fromkeys(
            ("records", "sequences", "tokens", "trained", "rejected", "too_long", "cut", "audited"), 0
        )
        writer = StoreWriter(folder)
        facts = token_facts(self.tokenizer)
        with (folder / "rejected.jsonl").open("w", encoding="utf-8") as rejected:
            for done in self._encoded(listed, left_out):
                for reject in done.rejects:
                    self._take_or_raise(reject, files)
                    line = {"file": files[reject.file].path, "line": reject.line, "field": reject.field}
                    rejected.write(json.dumps({**line, "reason": reject.reason, **(reject.audited or {})}) + "\n")
                _add(counts, done)
                if len(done.block.lengths):
                    audit([done.block], facts, self.rules, stats["files"])
                    writer.append(done.block)
                self.report(f"tokenising {source.path}: {counts['records']:,} records, {counts['tokens']:,} tokens")
        if not counts["sequences"]:
            why = f"{counts['rejected']} records were rejected" if counts["rejected"] else "the data set is empty"
            fix = "check data.audit" if counts["audited"] else "check the path and data.on_bad_record"
            raise UserError(f"no record to train on: {why}", source.path, fix)
        writer.close({**stats, **counts})

    def _take_or_raise(self, reject: Reject, files: list[File]) -> None:
        """A record that the job lets us skip is counted; any other ends the job."""
        if reject.audited is not None:
            return
        where = f"{files[reject.file].path}:{reject.line}" + (f" field {reject.field}" if reject.field else "")
        if reject.long_chat and self.rules.on_long_chat == "error":
            raise UserError(reject.reason, where, "raise data.sequence_length, or data.on_long_chat: cut or skip")
        if not reject.long_chat and self.job.data.on_bad_record == "error":
            raise UserError(reject.reason, where, "mend the record, or set data.on_bad_record: skip")

    def _encoded(self, listed: ListedSource, left_out: LeftOut) -> Iterator[_Encoded]:
        """Chunks in order, encoded by several processes."""
        worker = _Worker(Encoder(self.tokenizer, self.rules), listed.source, left_out)
        chunks, where = read_chunks(listed.files), listed.source.path
        return in_order(
            worker.work, chunks, self.job.data.processes, killed="a tokenising process was killed", where=where
        )


def _add(counts: dict[str, int], done: _Encoded) -> None:
    counts["records"] += done.records
    counts["sequences"] += len(done.block.lengths)
    counts["tokens"] += len(done.block.ids)
    counts["trained"] += int(done.block.trained.sum())
    counts["rejected"] += len(done.rejects)
    counts["too_long"] += sum(reject.long_chat for reject in done.rejects)
    counts["audited"] += sum(reject.audited is not None for reject in done.rejects)
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
