"""Single rows: the worst, the best, and those that several models answer differently."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.making import write_jsonl
from tests.report.runs_made import evaluate_run, evaluated_rows, generate_run
from velocity.report.facts import read_run
from velocity.report.rows import completions, extremes, prompt_of, sample, score_of, side_by_side
from velocity.report.table import Exchange


def words(exchange: Exchange) -> list[tuple[str, str]]:
    return [(said.who, "".join(piece.text for piece in said.pieces)) for said in exchange.said]


def test_the_worst_rows_of_choices_have_the_lowest_margin(tmp_path: Path):
    groups = {group.title: group for group in extremes(read_run(evaluate_run(tmp_path / "run", 0.5).path))}
    # row i has the margin i - 10
    worst = groups["seen: worst rows"].exchanges
    assert [one.title for one in worst] == [
        f"row {i} · q{i} · margin {m}" for i, m in ((0, "−10.0"), (1, "−9.00"), (2, "−8.00"))
    ]
    assert worst[0].prompt == "Which weakness is meant by sentence 0?"
    assert [(said.who, said.good) for said in worst[0].said] == [("taken", False), ("right", True), ("other", None)]
    best = groups["seen: best rows"].exchanges
    assert [one.title.split(" · ")[1] for one in best] == ["q39", "q38", "q37"]
    assert [said.who for said in best[0].said] == ["other", "right, and taken", "other"]


def test_texts_are_ranked_by_log_probability_a_token_and_answers_by_their_mean_score(tmp_path: Path):
    groups = {group.title: group for group in extremes(read_run(evaluate_run(tmp_path / "run", 0.5).path))}
    assert groups["unseen: worst rows"].exchanges[0].title == "row 39 · t39 · log-probability a token −4.90"
    # f1 of row 39 is 39 / 40, exact match 0
    assert groups["said: best rows"].exchanges[0].title == "row 39 · s39 · mean score 0.487"
    assert groups["said: best rows"].exchanges[0].reference == "It is weakness number 39."


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("choices", {"logprobs": [1.0], "answer": 0}), ("choices", {"logprobs": None}),
        ("perplexity", {"logprob": -1.0, "tokens": 0}), ("answers", {"scores": []}), ("answers", {"scores": {}}),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_scored_has_no_score(kind: str, row: dict[str, object]):
    assert score_of(kind, row) is None


def test_choices_that_runs_take_differently_stand_side_by_side(tmp_path: Path):
    for number, name in enumerate(("stock", "tuned")):
        evaluate_run(tmp_path / name, 0.5, seed=number)
    groups = side_by_side([read_run(tmp_path / name) for name in ("stock", "tuned")])
    seen = next(group for group in groups if group.title.startswith("seen"))
    # margins i - 10 and i - 7: their signs differ for i = 8, 9 and 10, where 0 is no gain
    assert [one.title for one in seen.exchanges] == ["row 8 · q8", "row 9 · q9", "row 10 · q10"]
    assert seen.note == "37 of 40 rows came out the same."
    assert [(said.who, said.good) for said in seen.exchanges[0].said] == [("stock", False), ("tuned", True)]
    assert seen.exchanges[0].reference == "An input is not checked."


def test_answers_that_differ_are_marked_against_the_first_run(tmp_path: Path):
    for number, name in enumerate(("stock", "tuned")):
        evaluate_run(tmp_path / name, 0.5, seed=number)
    groups = side_by_side([read_run(tmp_path / name) for name in ("stock", "tuned")])
    said = next(group for group in groups if group.title.startswith("said"))
    # every third answer of forty names another number: 14 differ
    assert said.note == "26 of 40 rows came out the same."
    marked = said.exchanges[0].said[1].pieces
    assert [piece.kind for piece in marked] == ["same", "del", "ins", "same"]


def test_completions_of_generate_runs_are_matched_by_their_id(tmp_path: Path):
    generate_run(tmp_path / "a", [("one?", "yes"), ("two?", "it is two"), ("three?", "same")])
    run = generate_run(tmp_path / "b", [("one?", "no"), ("two?", "it was two"), ("three?", "same")])
    rows = list(completions(run.path))
    write_jsonl(run.completions["jsonl"], reversed(rows))  # another order
    (group,) = side_by_side([read_run(tmp_path / name) for name in ("a", "b")])
    assert [one.prompt for one in group.exchanges] == ["one?", "two?"]
    assert words(group.exchanges[1]) == [("a", "it is two"), ("b", "it iswas two")]
    assert group.note == "1 of 3 rows came out the same."


def test_runs_without_a_common_row_are_not_compared(tmp_path: Path):
    run = generate_run(tmp_path / "a", [("one?", "yes")])
    write_jsonl(run.completions["jsonl"], [{"id": "other", "completion": "x"}])
    generate_run(tmp_path / "b", [("one?", "no")])
    assert side_by_side([read_run(tmp_path / name) for name in ("a", "b")]) == []


def test_a_table_of_completions_is_read_as_well_and_one_that_is_torn_is_none(tmp_path: Path):
    run = generate_run(tmp_path / "a", [])
    run.completions["jsonl"].unlink()
    table = pa.Table.from_pylist([{"id": "1", "prompt": "one?", "completion": "yes", "finish_reason": "stop"}])
    pyarrow.parquet.write_table(table, run.completions["parquet"])
    (group,) = sample(read_run(run.path))
    assert (group.exchanges[0].prompt, words(group.exchanges[0])) == ("one?", [("answer", "yes")])
    run.completions["parquet"].write_bytes(b"PAR1 torn")
    assert sample(read_run(run.path)) == []


def test_a_set_whose_name_leads_elsewhere_is_looked_for_in_the_run_alone(tmp_path: Path):
    run = evaluate_run(tmp_path / "run", 0.5)
    write_jsonl(tmp_path / "secret.jsonl", evaluated_rows(0)["seen"])
    evaluation = read_run(run.path).evaluation
    evaluation["sets"].clear()
    evaluation["sets"]["../../secret"] = {"kind": "choices"}
    (run.path / "evaluation.json").write_text(json.dumps(evaluation))
    assert extremes(read_run(run.path)) == []


def test_several_right_answers_are_all_told(tmp_path: Path):
    run = evaluate_run(tmp_path / "run", 0.5)
    row = {"id": "a", "row": 0, "prompt": "?", "reference": ["one", "two"], "completion": "x", "scores": {"f1": 0.5}}
    failed = {"id": "b", "row": 1, "prompt": "?", "reference": ["one"], "completion": "", "error": "too long"}
    write_jsonl(run.rows / "said.jsonl", [row, failed])
    groups = {group.title: group for group in extremes(read_run(run.path))}
    assert [one.reference for one in groups["said: worst rows"].exchanges] == ["one — or — two"]


def test_a_prompt_is_a_text_or_the_last_turn_of_a_chat():
    assert prompt_of({"prompt": "a?"}) == prompt_of({"question": "a?"}) == "a?"
    assert prompt_of({"messages": [{"content": "hi"}, {"role": "user", "content": "a?"}]}) == "a?"
    assert prompt_of({"prompt": [{"content": "a?"}]}) == "a?"
    assert prompt_of({"x": 1}) == ""
