"""What `velocity check` finds in a job's data without its weights: counts by hand, masks that hold, a sample."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.text import Text

from tests.making import chat, tiny_model_folder, tiny_tokenizer, write_job, write_jsonl
from velocity.config.load import load_job
from velocity.config.objective import KINDS
from velocity.data.encode import TokenSequence
from velocity.data.store import seal
from velocity.errors import JobError, UserError
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.planner.plan import resolve
from velocity.training import check
from velocity.training.check import CheckReport, check_job, colour, print_check

CPU = Hardware(2, 8.0, cpu_bf16=False)
CHATS = [chat("Why?", "Because."), chat("Why? " * 5, "So it is. " * 7), chat("When?", "Now.", "Where?", "Here.")]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    tiny_model_folder(folder / "model")
    write_jsonl(folder / "train.jsonl", CHATS)
    write_jsonl(folder / "unseen.jsonl", CHATS[:1])
    return folder


def checked(folder: Path, tmp_path: Path, **sections: Any) -> CheckReport:
    sections["data"] = {"cache": str(tmp_path / "cache"), **sections.get("data", {})}
    loaded = load_job(write_job(folder / "job.yaml", **sections))
    return check_job(resolve(loaded, Cluster(CPU), folder / "model"), folder / "model", lambda text: None)


def lengths() -> list[int]:
    """Tokens of each chat, by the template and the tokenizer alone."""
    tokenizer = tiny_tokenizer()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in CHATS]
    return [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def test_sequences_tokens_and_rows_are_those_of_the_rendered_chats(folder: Path, tmp_path: Path):
    unseen = {"eval": {"unseen": str(folder / "unseen.jsonl")}}
    found = checked(folder, tmp_path, data={**unseen, "sequence_length": sum(lengths())})
    assert set(found.sets) == {"train", "unseen"}
    counts = found.sets["train"].counts
    assert (counts.sequences, counts.tokens, counts.rows, counts.efficiency) == (3, sum(lengths()), 1, 1.0)
    assert (counts.percentiles[0], counts.percentiles[100]) == (min(lengths()), max(lengths()))
    assert 0 < counts.trained < counts.tokens
    assert found.sets["unseen"].counts.tokens == lengths()[0]
    assert (found.sets["train"].records, found.sets["train"].rejected, found.sets["train"].cut) == (3, 0, 0)


def test_the_steps_are_those_of_the_run(folder: Path, tmp_path: Path):
    data = {"sequence_length": 512, "packing": False}
    # three rows an epoch, two a step: six rows in two epochs
    assert checked(folder, tmp_path, data=data, batch={"rows": 2}, duration={"epochs": 2}).steps == 3


def test_a_chat_that_is_too_long_is_cut_or_left_out_as_the_job_says_and_counted(folder: Path, tmp_path: Path):
    limit = max(lengths()) - 3
    cut = checked(folder, tmp_path, data={"sequence_length": limit, "on_long_chat": "cut"}).sets["train"]
    assert (cut.records, cut.rejected, cut.cut, cut.counts.sequences) == (3, 0, 1, 3)
    assert cut.counts.percentiles[100] == limit
    left_out = checked(folder, tmp_path, data={"sequence_length": limit, "on_long_chat": "skip"}).sets["train"]
    assert (left_out.records, left_out.rejected, left_out.cut, left_out.counts.sequences) == (3, 1, 0, 2)
    with pytest.raises(UserError, match=f"the chat has {max(lengths())} tokens, data.sequence_length is {limit}"):
        checked(folder, tmp_path, data={"sequence_length": limit})


def test_a_report_is_plain_values_with_the_planners_reasons(folder: Path, tmp_path: Path):
    values = json.loads(json.dumps(checked(folder, tmp_path).describe()))
    assert values["sets"]["train"]["counts"]["sequences"] == 3
    assert (values["steps"], values["batch"], values["unit"]) == (2, 4, "rows")
    assert values["reasons"]["strategy.precision"] == "planner: the processor has no bf16"


def test_a_stored_mask_that_is_wrong_is_found_though_the_data_come_from_the_cache(folder: Path, tmp_path: Path):
    import pyarrow as pa

    checked(folder, tmp_path)
    store = next(path for path in (tmp_path / "cache" / "sequences").iterdir() if path.is_dir())
    with pa.OSFile(str(store / "sequences.arrow")) as stream:
        table = pa.ipc.open_file(stream).read_all()
    trained = [[1, *mask[1:]] for mask in table["trained"].to_pylist()]  # the first token, which nothing precedes
    broken = table.set_column(1, table.schema.field("trained"), pa.array(trained, pa.list_(pa.uint8())))
    with pa.OSFile(str(store / "sequences.arrow"), "wb") as sink, pa.ipc.new_file(sink, broken.schema) as writer:
        writer.write_table(broken)
    seal(store)  # as if it had been built so
    with pytest.raises(JobError, match="the first token of a sequence is trained on") as caught:
        checked(folder, tmp_path)
    assert f"{folder}/train.jsonl:1" in str(caught.value)


def test_a_person_reads_counts_reasons_and_what_is_trained_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_check(checked(folder, tmp_path))
    captured = capsys.readouterr()
    assert captured.err == "", "results go to standard output"
    rows = [line.replace("│", " ").split() for line in captured.out.splitlines()]
    row = next(row for row in rows if row[:1] == ["train"])
    assert row[1:6] == ["3", "0", "0", "3", str(sum(lengths()))]
    assert "strategy.precision: the processor has no bf16" in captured.out
    assert "the run: 2 steps of 4 rows\n" in captured.out
    assert "«Because.<|im_end|>»" in captured.out


KEY = "AKIA" + "IOSFODNN7EXAMPLE"


def test_what_is_wrong_with_the_text_is_told_and_nothing_is_where_all_is_well(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    clean = checked(folder, tmp_path)
    assert clean.describe()["audit"]["counts"] == dict.fromkeys(("duplicates", "overlap", "secrets", "oddities"), 0)
    print_check(clean)
    assert "the text of 3 rows: no row twice; " in capsys.readouterr().out
    path = write_jsonl(tmp_path / "dirty.jsonl", [*CHATS, CHATS[1], chat("What is the key?", f"It is {KEY}.")])
    found = checked(folder, tmp_path, data={"train": str(path), "audit": {"duplicates": "drop", "overlap": "off"}})
    assert (found.sets["train"].records, found.sets["train"].rejected) == (5, 1)
    values = json.loads(json.dumps(found.describe()))["audit"]
    assert values["counts"] == {"duplicates": 1, "secrets": 1, "oddities": 0}
    assert [(one["line"], one["with"], one["dropped"]) for one in values["findings"]] == [
        (4, f"{path}:2", True), (5, None, False)
    ]  # fmt: skip
    print_check(found)
    said = capsys.readouterr().out
    assert "duplicates: 1 rows of train say what an earlier row says; 1 of them left out\n" in said
    assert f"  {path}:5: an AWS key\n" in said
    assert KEY not in said


class Letters:
    """A tokenizer whose ids are places in the alphabet."""

    def decode(self, ids: Any) -> str:
        return "".join(chr(ord("a") + int(number)) for number in ids)


def sequence(ids: Sequence[int], trained: list[int], **answers: Any) -> TokenSequence:
    return TokenSequence(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.uint8), **answers)


def green_of(text: Text) -> list[str]:
    return [text.plain[span.start : span.end] for span in text.spans if span.style == "green"]


@pytest.mark.parametrize(
    ("trained", "text"),
    [([0, 0, 1, 1, 0], "ab«cd»e"), ([0, 1, 0, 0, 1], "a«b»cd«e»"),
     ([0, 0, 0, 0, 0], "abcde"), ([0, 1, 1, 1, 1], "a«bcde»")],
)  # fmt: skip
def test_what_is_trained_on_stands_between_marks_and_is_green(trained: list[int], text: str):
    made = colour(sequence([0, 1, 2, 3, 4], trained), Letters())
    assert made.plain == text
    marked = text.replace("«", "\0«").replace("»", "»\0").split("\0")
    assert green_of(made) == [part for part in marked if "«" in part]


def test_of_a_long_sequence_the_beginning_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "SAMPLE_TOKENS", 3)
    assert colour(sequence([0, 1, 2, 3, 4], [0, 1, 1, 1, 1]), Letters()).plain == "a«bc»"


def test_a_pair_is_shown_as_its_prompt_and_an_answer_a_line():
    made = colour(sequence(range(8), [0, 0, 0, 1, 1, 1, 1, 0], parts=(3, 2, 3)), Letters())
    assert made.plain == "abc\nchosen: «de»\nrejected: «fg»h"
    assert green_of(made) == ["«de»", "«fg»"], "two answers never run into each other"
    assert [made.plain[span.start : span.end] for span in made.spans if span.style == "dim"] == ["abc", "h"]


@pytest.mark.parametrize(("desirable", "name"), [(True, "desirable"), (False, "undesirable")])
def test_an_answer_without_a_rival_is_shown_with_its_label(desirable: bool, name: str):
    pair = sequence(range(5), [0, 0, 1, 0, 1], parts=(2, 3, 0), desirable=desirable)
    assert colour(pair, Letters()).plain == f"ab\n{name}: «c»d«e»"


def test_of_a_long_pair_the_prompts_end_is_shown_and_each_answers_beginning(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "SAMPLE_TOKENS", 2)
    made = colour(sequence(range(10), [0] * 4 + [1] * 6, parts=(4, 3, 3)), Letters())
    assert made.plain == "cd\nchosen: «ef»\nrejected: «hi»"


PAIRS = [
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
    {"prompt": "When? " * 3, "chosen": "So it is. " * 7, "rejected": "Now."},
    {"prompt": "Where?", "chosen": "Here.", "rejected": "There it is. " * 4},
]


def pair_lengths() -> list[tuple[int, int, int]]:
    """Tokens of each prompt and of its two answers up to their end, by the template and the tokenizer alone."""
    tokenizer, lengths = tiny_tokenizer(), []

    def count(messages: Any, *, prompt: bool = False) -> int:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
        return len(tokenizer(text if prompt else text.rstrip("\n"), add_special_tokens=False)["input_ids"])

    for row in PAIRS:
        first = count(chat(row["prompt"])["messages"], prompt=True)
        chosen, rejected = (count(chat(row["prompt"], row[key])["messages"]) - first for key in ("chosen", "rejected"))
        lengths.append((first, chosen, rejected))
    return lengths


@pytest.fixture(name="pairs", scope="module")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    tiny_model_folder(folder / "model")
    write_jsonl(folder / "train.jsonl", PAIRS)
    write_jsonl(folder / "unseen.jsonl", PAIRS[:2])
    return folder


def checked_pairs(folder: Path, tmp_path: Path, kind: str = "dpo", **sections: Any) -> CheckReport:
    data = {"eval": {"unseen": str(folder / "unseen.jsonl")}, "sequence_length": 256, **sections.pop("data", {})}
    return checked(folder, tmp_path, task="preference", preference={"kind": kind}, data=data, **sections)


def test_pairs_are_counted_once_and_are_as_long_as_the_prompt_with_the_longer_answer(pairs: Path, tmp_path: Path):
    found = checked_pairs(pairs, tmp_path).sets["train"].counts
    lengths = pair_lengths()
    assert (found.sequences, found.tokens) == (3, sum(map(sum, lengths)))
    assert found.trained == sum(chosen + rejected for _, chosen, rejected in lengths)
    whole = [prompt + max(chosen, rejected) for prompt, chosen, rejected in lengths]
    assert (found.percentiles[0], found.percentiles[100]) == (min(whole), max(whole))


def test_rows_of_pairs_are_those_that_a_step_packs_with_the_prompt_computed_once(pairs: Path, tmp_path: Path):
    # a pair's row holds its prompt but the last token once, and both answers; two at a time are three pairs in 2 steps
    taken = [prompt - 1 + chosen + rejected for prompt, chosen, rejected in pair_lengths()]
    assert 2 * 256 > sum(taken) > 256, "one row holds all of them"
    found = checked_pairs(pairs, tmp_path, batch={"rows": 2})
    assert (found.sets["train"].counts.rows, found.sets["unseen"].counts.rows) == (2, 1)
    assert found.sets["train"].counts.efficiency == pytest.approx(sum(taken) / (2 * 512))
    assert found.sets["unseen"].counts.efficiency == pytest.approx(sum(taken[:2]) / 512)
    together = checked_pairs(pairs, tmp_path, batch={"rows": 3})
    assert together.sets["train"].counts.rows == 1


def test_an_attention_that_cannot_share_a_prompt_fills_its_rows_with_both_copies(pairs: Path, tmp_path: Path):
    model = {"path": str(pairs / "model"), "attention": "sdpa"}
    found = checked_pairs(pairs, tmp_path, model=model, batch={"rows": 3}).sets["train"].counts
    taken = [2 * (prompt - 1) + chosen + rejected for prompt, chosen, rejected in pair_lengths()]
    assert found.efficiency == pytest.approx(sum(taken) / (found.rows * 512))


def test_unpacked_pairs_have_a_row_each(pairs: Path, tmp_path: Path):
    found = checked_pairs(pairs, tmp_path, data={"packing": False}).sets["train"].counts
    taken = [prompt - 1 + chosen + rejected for prompt, chosen, rejected in pair_lengths()]
    assert found.rows == 3
    assert found.efficiency == pytest.approx(sum(taken) / (3 * max(taken)))


def test_kto_makes_two_answers_of_a_pair(pairs: Path, tmp_path: Path):
    found = checked_pairs(pairs, tmp_path, "kto", batch={"rows": 6})
    counts, lengths = found.sets["train"].counts, pair_lengths()
    assert (found.sets["train"].records, counts.sequences, found.unit) == (3, 6, "answers")
    assert counts.tokens == sum(2 * prompt + chosen + rejected for prompt, chosen, rejected in lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_preference_job_of_every_kind_is_checked_and_shown(
    pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    unit = "answers" if kind == "kto" else "pairs"
    found = checked_pairs(pairs, tmp_path, kind, batch={"rows": 2}, duration={"epochs": 1})
    print_check(found)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("preference: data in tokens of ")
    assert next(line for line in lines if line.startswith("set ")).split()[4:7] == ["cut", unit, "tokens"]
    assert f"the run: {3 if kind == 'kto' else 2} steps of 2 {unit}" in lines  # of six answers, of three pairs
    assert "<|im_start|>assistant" in lines
    answers = {"chosen": "«Because.<|im_end|>»", "rejected": "«No.<|im_end|>»"}
    shown = {"desirable": answers["chosen"]} if kind == "kto" else answers
    assert [line for line in lines if "«Because" in line or "«No" in line] == [": ".join(one) for one in shown.items()]
    assert json.loads(json.dumps(found.describe()))["unit"] == unit
