"""The shards of a set: in files of its own, taken up where they were left."""

from __future__ import annotations

from pathlib import Path

from tests.evaluating import evaluation_folder, stores_of
from velocity.evaluation.scoring import Asked, Judged
from velocity.evaluation.sets import Todo, _judged_line, ledger_of
from velocity.runs.folder import RunFolder


def test_sets_lie_side_by_side_and_each_knows_its_own_finished_shards(tmp_path: Path):
    stores = stores_of(evaluation_folder(tmp_path, 24))  # shards of 16 and 8
    run = RunFolder(tmp_path / "run")
    choices, pairs = (ledger_of(run, name, stores[name]) for name in ("choices", "pairs"))
    run.shards.mkdir(parents=True)
    choices.write(1, [{"row": int(row)} for row in choices.shards[1]])
    assert [path.name for path in run.shards.iterdir()] == ["choices-00000001.jsonl"]
    assert (choices.unfinished(), pairs.unfinished()) == ([0], [0, 1])
    assert Todo("choices", stores["choices"], choices, choices.unfinished()).done == 8


def test_a_row_whose_scores_are_not_finite_has_failed_and_says_so():
    asked = Asked(3, [])
    assert _judged_line(asked, [Judged(-2.0, 4, likeliest=True)]) == {"row": 3, "logprobs": [-2.0], "tokens": [4]}
    for wrong in (float("nan"), float("-inf")):
        line = _judged_line(asked, [Judged(-2.0, 4, likeliest=True), Judged(wrong, 1, likeliest=False)])
        assert line == {"row": 3, "error": "the model's log-probabilities are not finite"}
