"""What `velocity show` says of a generate job's run: while it runs, when it was stopped or failed, and at its end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.generating import write_generate_job
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.distributed import failure
from velocity.distributed.failure import Failure
from velocity.errors import UserError
from velocity.inference.show import print_summary, summarise
from velocity.runs.folder import RunFolder


def told(step: int, **changes: Any) -> dict[str, Any]:
    line = {"step": step, "rows": 10, "seconds": 5.0, "tokens": 100, "rows_per_second": 2.0}
    return {**line, "tokens_per_second": 1234.5, "memory_gib": 1.5, **changes}


COMPLETED = {
    "step": 1500,
    "completed": {
        "completions": 1500,
        "finish_reasons": {"stop": 1400, "length": 100},
        "prompt_tokens": {"50": 20, "90": 40, "99": 50, "100": 1060},
        "completion_tokens": {"50": 7, "90": 8, "99": 9, "100": 10},
    },
}


def make_run(folder: Path, lines: list[Any], torn: str = "", state: str = "running") -> RunFolder:
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    run.job.write_text(render(load_job(write_generate_job(folder / "job.yaml", {"generation.engine": "zero"}))))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    run.set_status(state)
    return run


def shown(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> str:
    print_summary(summarise(run.path))
    return capsys.readouterr().out


def test_a_running_job_says_how_far_it_is_and_when_it_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [told(800, memory_gib=2.25), told(1200, seconds_left=150.0)]
    run = make_run(tmp_path, lines, torn='{"step": 13')
    with run.owned():
        text = shown(run, capsys)
    assert text.splitlines()[0] == f"{run.path}: generate with {tmp_path}/model, running"
    # the highest memory of all lines; the rates of the last one
    assert "1,200 rows by engine zero, 2.00 rows/s, 1,234 new tokens/s, 2.2 GiB, 150 s left" in text


def test_a_run_that_nobody_holds_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert ", killed\n" in shown(make_run(tmp_path, [told(10)]), capsys)


def test_a_run_that_did_nothing_yet_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [], state="interrupted")
    assert shown(run, capsys).splitlines()[1:] == ["no row was completed yet"]
    assert summarise(run.path)["rows"] == 0


def test_a_failed_run_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [told(10)], state="failed")
    failure.record(run.failures, 1, Failure("3 of 40 rows failed by themselves"))
    assert "  cause: 3 of 40 rows failed by themselves" in shown(run, capsys)


def test_a_finished_run_says_how_completions_ended_and_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path, [told(1500), COMPLETED], state="complete")
    run.completions["jsonl"].write_text("{}\n")
    text = shown(run, capsys)
    assert "1,500 completions ended: 100 by length, 1,400 by stop" in text
    (row,) = [line for line in text.splitlines() if "prompt" in line and "1,060" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["prompt", "20", "40", "50", "1,060"]
    assert text.rstrip().endswith(f"→ {run.path}/completions.jsonl")


def test_a_summary_is_plain_values_of_the_last_attempt(tmp_path: Path):
    run = make_run(tmp_path, [told(10), COMPLETED, told(1500, rows_per_second=3.0), COMPLETED], state="complete")
    found = json.loads(json.dumps(summarise(run.path)))
    assert (found["task"], found["engine"], found["rows"], found["rows_per_second"]) == ("generate", "zero", 1500, 3.0)
    assert found["completed"] == COMPLETED["completed"]
    assert found["seconds_left"] is None and found["cause"] is None


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        summarise(tmp_path)


def test_the_rate_is_a_line_of_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [told(step, tokens_per_second=100.0 * step) for step in (1, 8, 4)]
    assert "new tokens/s 100 ▁█▄ 400" in shown(make_run(tmp_path, lines), capsys)
