"""Single rows of runs: the worst and the best of an evaluation, and what several models made of the same ones.

It knows no page. Of a long file its first rows are looked at.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from velocity.report.difference import difference, pieces
from velocity.report.facts import Run, read_lines
from velocity.report.spelling import cut, number
from velocity.report.table import Exchange, Group, Said
from velocity.runs.folder import RunFolder

MOST_ROWS = 50_000  # of a file
EXTREMES, BESIDE, SAMPLE = 3, 6, 4  # rows that are shown: at either end, side by side, of a run by itself
LETTERS = 1200  # of a prompt or an answer
LABEL_LETTERS = 300  # of a choice
CHOSEN = ("choices", "preference")

Row = Mapping[str, Any]


def extremes(run: Run) -> list[Group]:
    """For each set of an evaluation its worst rows and its best ones."""
    groups = []
    for name, kind, rows in _sets(run):
        scored = [(score, place, row) for place, row in enumerate(rows) if (score := score_of(kind, row)) is not None]
        if not scored:
            continue
        few = min(EXTREMES, (len(scored) + 1) // 2)
        for words, pick in (("worst", heapq.nsmallest), ("best", heapq.nlargest)):
            picked = pick(few, scored, key=lambda one: one[0])
            shown = [_shown(kind, row, f"{SCORES.get(kind, 'score')} {number(score)}") for score, _, row in picked]
            groups.append(Group(f"{name}: {words} rows", shown, _looked(len(rows))))
    return groups


SCORES = {"perplexity": "log-probability a token", "answers": "mean score"} | dict.fromkeys(CHOSEN, "margin")


def score_of(kind: str, row: Row) -> float | None:
    """How well the row went: its margin, its log-probability a token, its mean score; None where it does not say."""
    try:
        if kind in CHOSEN:
            right = row.get("answer", 0)
            others = [value for place, value in enumerate(row["logprobs"]) if place != right]
            return float(row["logprobs"][right] - max(others))
        if kind == "perplexity":
            return float(row["logprob"] / row["tokens"])
        scores = list(row["scores"].values())
        return float(sum(scores) / len(scores))
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, AttributeError):
        return None


def side_by_side(runs: Sequence[Run]) -> list[Group]:
    """What several runs made of the same rows, where they differ most; what differs from the first one is marked."""
    groups = []
    for name, kind in dict.fromkeys((name, kind) for run in runs for name, kind in _names(run)):
        having = [(run, _by_id(run, name)) for run in runs if (name, kind) in _names(run)]
        if len(having) > 1 and (group := _beside(name, kind, having)):
            groups.append(group)
    spoken = [(run, {_key(row): row for row in completions(run.folder)}) for run in runs if run.task == "generate"]
    if len(spoken) > 1 and (group := _beside("completions", "completions", spoken)):
        groups.append(group)
    return groups


def sample(run: Run) -> list[Group]:
    """The first completions of a generate run."""
    rows = [_shown("completions", row, "") for row in islice(completions(run.folder), SAMPLE)]
    return [Group("The first completions", rows)] if rows else []


def completions(folder: Path) -> Iterator[Row]:
    """The first rows of completions.jsonl or completions.parquet."""
    if (table := folder / "completions.parquet").is_file():
        import pyarrow.parquet

        try:
            batches = pyarrow.parquet.ParquetFile(table).iter_batches(batch_size=1024)
            yield from islice((row for batch in batches for row in batch.to_pylist()), MOST_ROWS)
        except (pyarrow.ArrowException, OSError):
            return
    yield from _lines(folder / "completions.jsonl")


def _names(run: Run) -> list[tuple[str, str]]:
    sets = run.evaluation.get("sets")
    return [(str(name), str(one.get("kind", ""))) for name, one in sets.items()] if isinstance(sets, dict) else []


def _sets(run: Run) -> Iterator[tuple[str, str, list[Row]]]:
    for name, kind in _names(run):
        if rows := list(_lines(_file(run, name))):
            yield name, kind, rows


def _file(run: Run, name: str) -> Path:
    return RunFolder(run.folder).rows / f"{Path(name).name}.jsonl"  # a set's name leads to no other folder


def _by_id(run: Run, name: str) -> dict[Any, Row]:
    return {_key(row): row for row in _lines(_file(run, name))}


def _key(row: Row) -> tuple[str, str]:
    return str(row.get("id", row.get("row"))), str(row.get("sample", ""))


def _lines(path: Path) -> Iterator[Row]:
    return islice(read_lines(path), MOST_ROWS)


def _looked(count: int) -> str:
    return f"Of the first {MOST_ROWS:,} rows." if count >= MOST_ROWS else ""


def _beside(name: str, kind: str, having: Sequence[tuple[Run, Mapping[Any, Row]]]) -> Group | None:
    first = having[0][1]
    shared = [key for key in first if all(key in rows for _, rows in having[1:])]
    apart = [(how, key) for key in shared if (how := _apart(kind, [rows[key] for _, rows in having]))]
    if not shared:
        return None
    same = len(shared) - len(apart)
    note = f"{same:,} of {len(shared):,} rows came out the same. {_looked(len(first))}".strip()
    picked = heapq.nlargest(BESIDE, apart, key=lambda one: one[0])
    shown = [_together(kind, [(run.label, rows[key]) for run, rows in having]) for _, key in picked]
    return Group(f"{name}: where they differ most", shown, note)


def _apart(kind: str, rows: Sequence[Row]) -> float:
    """How much the runs' rows differ; 0 where they came out the same."""
    if kind == "completions":
        texts = [str(row.get("completion", "")) for row in rows]
        return 0.0 if len(set(texts)) == 1 else 1.0  # nlargest keeps the order of equals
    scores = [score for row in rows if (score := score_of(kind, row)) is not None]
    spread = max(scores) - min(scores) if scores else 0.0
    if kind in CHOSEN:
        return spread if len({score > 0 for score in scores}) > 1 else 0.0
    if kind == "answers" and len({str(row.get("completion", "")) for row in rows}) > 1:
        return spread + 1e-9
    return spread


def _together(kind: str, rows: Sequence[tuple[str, Row]]) -> Exchange:
    """A row with what each run said to it."""
    _, row = rows[0]
    title, prompt = _title(row), cut(prompt_of(row), LETTERS)
    if kind in ("completions", "answers"):
        base = cut(str(row.get("completion", "")), LETTERS)
        said = [Said(rows[0][0], pieces(base), _note(kind, row))]
        for label, other in rows[1:]:
            text = cut(str(other.get("completion", "")), LETTERS)
            said.append(Said(label, difference(base, text), _note(kind, other)))
        return Exchange(title, prompt, said, cut(_reference(row), LETTERS))
    if kind in CHOSEN:
        said = [_picked(label, other) for label, other in rows]
        return Exchange(title, prompt, said, cut(_choice(row, row.get("answer", 0)), LABEL_LETTERS))
    return Exchange(title, prompt, [Said(label, pieces(_note(kind, other))) for label, other in rows])


def _picked(label: str, row: Row) -> Said:
    """Which answer a run took."""
    picked = row.get("picked")
    place = picked.get("sum") if isinstance(picked, dict) else None
    taken = pieces(cut(_choice(row, place), LABEL_LETTERS))
    return Said(label, taken, _note("choices", row), good=place == row.get("answer", 0))


def _choice(row: Row, place: Any) -> str:
    choices = row.get("choices")
    return str(choices[place]) if isinstance(choices, list) and isinstance(place, int) and place < len(choices) else "–"


def _shown(kind: str, row: Row, note: str) -> Exchange:
    """A row of one run."""
    title = " · ".join(filter(None, [_title(row), note]))
    prompt, reference = cut(prompt_of(row), LETTERS), cut(_reference(row), LETTERS)
    if kind in CHOSEN and isinstance(row.get("choices"), list):
        return Exchange(title, prompt, [_choice_of(row, place) for place in range(len(row["choices"]))][:8])
    text = str(row.get("completion", ""))
    if kind == "perplexity":
        return Exchange(title, prompt, [Said("text", [], _note(kind, row))])
    return Exchange(title, prompt, [Said("answer", pieces(cut(text, LETTERS)), _note(kind, row))], reference)


def _choice_of(row: Row, place: int) -> Said:
    picked = row.get("picked")
    right = place == row.get("answer", 0)
    taken = isinstance(picked, dict) and picked.get("sum") == place
    logprobs = row.get("logprobs")
    said = f"log-probability {number(logprobs[place])}" if isinstance(logprobs, list) and place < len(logprobs) else ""
    who = "right, and taken" if right and taken else "right" if right else "taken" if taken else "other"
    return Said(who, pieces(cut(str(row["choices"][place]), LABEL_LETTERS)), said, right if right or taken else None)


def _note(kind: str, row: Row) -> str:
    """The numbers of a row."""
    notes: dict[str, Callable[[], str]] = {
        "perplexity": lambda: f"{number(row['logprob'] / row['tokens'])} a token over {row['tokens']:,} tokens",
        "answers": lambda: ", ".join(f"{_words(key)} {number(value)}" for key, value in row["scores"].items()),
        "choices": lambda: f"margin {number(score_of('choices', row))}",
        "completions": lambda: f"{row['completion_tokens']:,} tokens, ended by {row['finish_reason']}",
    }
    try:
        return notes[kind if kind in notes else "choices"]()
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError):
        return ""


def _reference(row: Row) -> str:
    """What is right; where several answers are, all of them."""
    known = row.get("reference")
    return " — or — ".join(map(str, known)) if isinstance(known, list) else str(known or "")


def _words(key: str) -> str:
    return key.replace("_", " ")


def _title(row: Row) -> str:
    place = f"row {row['row']}" if isinstance(row.get("row"), int) else ""
    return " · ".join(filter(None, [place, cut(str(row.get("input_id", row.get("id", ""))), 80)]))


def prompt_of(row: Row) -> str:
    """What a row asked: its prompt, the last turn of its messages, or its text."""
    for key in ("prompt", "question", "text"):
        if isinstance(row.get(key), str):
            return str(row[key])
    for key in ("messages", "prompt"):
        turns = row.get(key)
        if isinstance(turns, list) and turns and isinstance(turns[-1], dict):
            return str(turns[-1].get("content", ""))
    return ""
