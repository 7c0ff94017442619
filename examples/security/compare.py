"""The comparison: a stock model, retrieval, LoRA, full tuning, and that with retrieval, on the same questions."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

import comparison
import corpus
import demo
import digests
import model
import questions
import sources

HERE = Path(__file__).parent
TOP = HERE.parent.parent
JOBS = HERE / "compare"
BASE, CORPUS, OUTPUT = "runs/demo/base", "runs/demo/corpus", "runs/compare"  # as the job files name them
TRAINING = ("pretrain", "preference", "lora-pretrain", "lora-preference")
MODELS = {"stock": "", "lora": "lora", "full": "full"}  # name: its run below the output folder; stock has none
WITH_RETRIEVAL = ("stock", "full")
INSTANCES = ("Known vulnerabilities", "Examples")  # sections that no digest tells: they would be a third of it
GENERAL_ROWS = 61  # records of general English that are measured on: 26,000 tokens tell a perplexity to 2 %
TEXTS = ("train", "unseen", "general", "general_replay")
QUESTIONS = ("choices_train", "choices_seen", "choices_unseen")
HELD_OF = 10  # one of so many subjects is held out of training
WITHOUT = "Which answer is right?"  # what stands for a question where its options are to tell nothing
QUICK_ROWS = 8
QUICK = {
    "pretrain": ("duration.steps=2", "batch.tokens=1024"),
    "preference": ("duration.steps=2", "batch.rows=4"),
    "evaluate": ("data.sequence_length=512", "data.on_long_chat=cut"),
}


@dataclass(frozen=True)
class Places:
    """Where the model, the texts, the questions and the results are."""

    model: Path
    corpus: Path
    questions: Path
    output: Path

    def of(self, named: str) -> str:
        """The path that stands for one that a job file names."""
        path = Path(named)
        if named == BASE:
            return str(self.model)
        if path.is_relative_to(CORPUS):
            return str((self.questions if path.name.startswith("choices") else self.corpus) / path.name)
        return str(self.output / path.relative_to(OUTPUT)) if path.is_relative_to(OUTPUT) else named


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done yet, print the table and draw the picture; return the exit status."""
    options = parse(arguments)
    places = Places(*map(Path, (options.model, options.corpus, options.questions, options.output)))
    places.output.mkdir(parents=True, exist_ok=True)
    try:
        make_missing(places)
        places = shortened(places) if options.quick else places
        make_sets(places)
    except (sources.SourceError, model.ModelError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    started = time.monotonic()
    for job, changes in chain(places, quick=options.quick):
        print("  $ velocity run", job.name, *changes[-2:], flush=True)
        status = subprocess.run([sys.executable, "-m", "velocity", "run", str(job), *changes], check=False).returncode
        if status:
            return status
    result = comparison.gather(places.output, [*MODELS], WITH_RETRIEVAL)
    result["seconds"] = round(time.monotonic() - started, 1)
    comparison.show(result)
    comparison.keep(result, TOP if options.save else places.output, command=sys.argv, saved=options.save)
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--corpus", default=CORPUS, help="folder: train, unseen, general, general_replay .jsonl")
    options.add_argument("--questions", default=CORPUS, help="folder: choices_train, _seen, _unseen .jsonl")
    options.add_argument("--model", default=BASE, help="the stock model: a folder")
    options.add_argument("--output", default=OUTPUT, help="where runs, table and picture go")
    options.add_argument("--quick", action="store_true", help="a smoke run: two steps, few rows; no figure counts")
    options.add_argument("--save", action="store_true", help="keep the result under benchmarks/results and docs")
    return options.parse_args(arguments)


def make_missing(places: Places) -> None:
    """The demo's model and texts are there if they are asked for; else FileNotFoundError names what is missing."""
    texts = [places.corpus / f"{name}.jsonl" for name in TEXTS]
    asked = [places.questions / f"{name}.jsonl" for name in QUESTIONS]
    missing = [path for path in (*texts, *asked, places.model / "config.json") if not path.exists()]
    if not missing:
        return
    ours = {TOP / CORPUS, TOP / BASE}
    if foreign := [path for path in missing if path.parent.absolute() not in ours]:
        raise FileNotFoundError(f"{foreign[0]} is missing: examples/security/README.md says what belongs there")
    found = sources.fetch(TOP / demo.DEMO / "downloads")
    model.convert(found["model"], TOP / BASE)
    corpus.build(found, TOP / CORPUS)


def shortened(places: Places) -> Places:
    """Return places with the first few texts and questions about this and that: a smoke run reads no whole corpus."""
    few = places.output / "few"
    for name in TEXTS:
        write(few / f"{name}.jsonl", list(islice(lines_of(places.corpus / f"{name}.jsonl"), QUICK_ROWS)))
    for name in QUESTIONS:
        lines = list(lines_of(places.questions / f"{name}.jsonl"))
        write(few / f"{name}.jsonl", lines[:: max(1, -(-len(lines) // QUICK_ROWS))])
    return Places(places.model, few, few, places.output)


def make_sets(places: Places) -> None:
    """What is measured on lies below the output folder; what training watches lies beside the texts."""
    for name in ("unseen", "general"):
        if not (places.corpus / f"{name}_sample.jsonl").exists():
            demo.sample(places.corpus / f"{name}.jsonl", demo.SAMPLED[name])
    sets = places.output / "sets"
    # all of them now: a wrong line is to be named before hours of training, not after
    taught, seen, _ = (list(read_questions(places.questions / f"{name}.jsonl")) for name in QUESTIONS)
    held, asked = held_out(taught)
    write_rows(sets / "held.jsonl", held)
    write_rows(sets / "questions.jsonl", questions.as_chats(asked))
    write_rows(sets / "pairs.jsonl", questions.as_pairs(asked))
    write_rows(sets / "options.jsonl", [{**row, "prompt": WITHOUT} for row in seen])
    write_rows(sets / "digests.jsonl", digests.digests(read(places.corpus / "train.jsonl", "text"), without=INSTANCES))
    for name, path, rows_at_most in (
        ("seen", places.questions / "choices_seen.jsonl", None),
        ("unseen", places.questions / "choices_unseen.jsonl", None),
        ("texts", places.corpus / "unseen.jsonl", None),
        ("general", places.corpus / "general.jsonl", GENERAL_ROWS),
    ):
        lines = list(lines_of(path))
        every = -(-len(lines) // rows_at_most) if rows_at_most else 1
        write(sets / f"{name}.jsonl", lines[::every])


def held_out(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Return the questions about a tenth of the subjects, at least one, and all others.

    The former are kept out of training, so that a recipe can be chosen by them and not by what is reported. What stands
    before the first `/` of a question's id is its subject, unless that is the same in all: then each question is one.
    """
    ids = [questions.id_of(row) for row in rows]
    subjects = [name.partition("/")[0] for name in ids]
    if len(set(subjects)) < 2:
        subjects = ids
    ordered = sorted(set(subjects), key=questions.drawn)
    held = set(ordered[: -(-len(ordered) // HELD_OF)])
    parts: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
    for row, subject in zip(rows, subjects, strict=True):
        parts[subject not in held].append(row)
    return parts


def read(path: Path, *fields: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file; ValueError names a line that is none, or has not all of the fields."""
    for number, line in enumerate(lines_of(path), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
        told = row.keys() if isinstance(row, dict) else ()
        if missing := [field for field in fields if field not in told]:
            raise ValueError(f"{path}, line {number}: no `{missing[0]}`")
        yield row


def read_questions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file of questions; ValueError names a line whose answer is none of its options."""
    for number, row in enumerate(read(path, "prompt", "choices", "answer"), 1):
        options, answer = row["choices"], row["answer"]
        if not (isinstance(options, list) and isinstance(answer, int) and 0 <= answer < len(options)):
            raise ValueError(f"{path}, line {number}: `answer` must be the place of one of `choices`, from 0")
        yield row


def lines_of(path: Path) -> Iterator[str]:
    """Yield a file's lines. What `str.splitlines` also takes for an end, such as U+2028, may stand in a JSON string."""
    with path.open(encoding="utf-8") as stream:
        yield from (line.rstrip("\n") for line in stream)


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """The JSONL file holds these rows."""
    write(path, [json.dumps(row, ensure_ascii=False) for row in rows])


def write(path: Path, lines: Sequence[str]) -> None:
    """The file holds these lines; left alone where it does already, so that what was measured on it still counts."""
    text = "".join(f"{line}\n" for line in lines)
    if not path.exists() or path.read_text("utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)


def chain(places: Places, *, quick: bool = False) -> Iterator[tuple[Path, list[str]]]:
    """Yield each job's file with what it is to change, in the order in which they run."""
    for name in TRAINING:
        job = JOBS / f"{name}.yaml"
        yield job, [*changed(job, places), *(QUICK[name.removeprefix("lora-")] if quick else ())]
    for name, run in MODELS.items():
        for kind in ("", "-retrieval") if name in WITH_RETRIEVAL else ("",):
            job = JOBS / f"evaluate{kind}.yaml"
            taken = str(places.output / run) if run else str(places.model)
            where = places.output / f"judged-{name}{kind}"
            few = QUICK["evaluate"] if quick else ()
            yield job, [*changed(job, places), *few, f"model={taken}", f"output={where}"]


def changed(job: Path, places: Places) -> list[str]:
    """Return `key.path=value` for each path of the job file that lies elsewhere."""
    leaves = flat(yaml.safe_load(job.read_text("utf-8")))
    moved = {key: places.of(value) for key, value in leaves.items() if isinstance(value, str) and "/" in value}
    return [f"{key}={json.dumps(value)}" for key, value in moved.items() if value != leaves[key]]


def flat(value: Any, key: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings and lists by their dotted keys."""
    if not isinstance(value, Mapping | list):
        return {key: value}
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {path: leaf for name, part in inner for path, leaf in flat(part, f"{key}.{name}".lstrip(".")).items()}


if __name__ == "__main__":
    sys.exit(main())
