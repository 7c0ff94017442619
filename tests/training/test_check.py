"""What `velocity check` finds in a job's data without its weights: counts by hand, masks that hold, a sample."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.making import chat, tiny_model_folder, tiny_tokenizer, write_job, write_jsonl
from velocity.config.job import load_job
from velocity.data.encode import TokenSequence
from velocity.errors import JobError, UserError
from velocity.planner.hardware import Hardware
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
    return check_job(resolve(loaded, CPU, folder / "model"), folder / "model", lambda text: None)


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
    assert values["steps"] == 2
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
    assert "the run: 2 steps" in captured.out
    assert "«Because.<|im_end|>»" in captured.out


class Letters:
    """A tokenizer whose ids are places in the alphabet."""

    def decode(self, ids: Any) -> str:
        return "".join(chr(ord("a") + int(number)) for number in ids)


def sequence(ids: list[int], trained: list[int]) -> TokenSequence:
    return TokenSequence(np.array(ids, dtype=np.int32), np.array(trained, dtype=np.uint8))


@pytest.mark.parametrize(
    ("trained", "text"),
    [([0, 0, 1, 1, 0], "ab«cd»e"), ([0, 1, 0, 0, 1], "a«b»cd«e»"),
     ([0, 0, 0, 0, 0], "abcde"), ([0, 1, 1, 1, 1], "a«bcde»")],
)  # fmt: skip
def test_what_is_trained_on_stands_between_marks_and_is_green(trained: list[int], text: str):
    made = colour(sequence([0, 1, 2, 3, 4], trained), Letters())
    assert made.plain == text
    green = "".join(made.plain[span.start : span.end] for span in made.spans if span.style == "green")
    assert green == "".join(part for part in text.replace("«", "\0«").replace("»", "»\0").split("\0") if "«" in part)


def test_of_a_long_sequence_the_beginning_is_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "SAMPLE_TOKENS", 3)
    assert colour(sequence([0, 1, 2, 3, 4], [0, 1, 1, 1, 1]), Letters()).plain == "a«bc»"
