"""What `velocity show` says of a run: sums by hand, a line that was torn, a run that failed or did nothing yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.distributed import failure
from velocity.distributed.failure import Failure
from velocity.errors import UserError
from velocity.runs.folder import Measured, RunFolder
from velocity.training.show import print_summary, summarise


def step(number: int, **changes: float) -> dict[str, Any]:
    line = {"step": number, "loss": 5.0 - number, "tokens": 10, "learning_rate": 0.1, "grad_norm": 1.0}
    return {**line, "tokens_per_second": 100.0, "seconds": 1.0, "memory_gib": 1.5, "skipped": 0, **changes}


def scored(number: int, **perplexities: float) -> dict[str, Any]:
    sets = {name: {"loss": 0.0, "perplexity": value, "tokens": 5} for name, value in perplexities.items()}
    return {"step": number, "eval": sets}


def make_run(folder: Path, lines: list[Any], torn: str = "", state: str = "running", **sections: Any) -> RunFolder:
    run = RunFolder(folder / "run")
    run.path.mkdir(parents=True)
    run.job.write_text(render(load_job(write_job(folder / "job.yaml", **sections))))
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + torn)
    run.set_status(state)
    return run


def shown(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> str:
    print_summary(summarise(run.path))
    captured = capsys.readouterr()
    assert captured.err == "", "results go to standard output"
    return captured.out


def test_a_summary_sums_tokens_and_seconds_and_takes_the_highest_memory(tmp_path: Path):
    slower = step(2, tokens=30, tokens_per_second=50.0, seconds=3.0, memory_gib=2.5)
    found = summarise(make_run(tmp_path, [step(1), slower, step(3)]).path)
    assert (found["task"], found["model"], found["state"]["state"]) == ("sft", str(tmp_path / "model"), "killed")
    assert (found["steps"], found["tokens_trained_on"], found["seconds"], found["memory_gib"]) == (3, 50, 5.0, 2.5)
    # not the mean of the rates: (100 x 1 + 50 x 3 + 100 x 1) tokens in 5 seconds
    assert found["tokens_per_second"] == pytest.approx(70)
    assert found["losses"] == [4.0, 3.0, 2.0]
    assert found["cause"] is None
    assert json.loads(json.dumps(found)) == found, "--json prints it"


def test_a_run_that_was_stopped_says_where_and_how_long_its_saves_took(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    saves = [{"step": number, "checkpoint": {"seconds": seconds}} for number, seconds in ((1, 2.0), (2, 41.26))]
    run = make_run(tmp_path, [step(1), saves[0], step(2), saves[1]], state="interrupted")
    run.set_status("interrupted", why="stopped after step 2, and saved in 41.3 s\n  fix:   run the same command")
    assert summarise(run.path)["save_seconds"] == 41.26
    said = shown(run, capsys).splitlines()
    assert said[1] == "  stopped after step 2, and saved in 41.3 s"
    assert "a checkpoint was written within 41.3 s" in said


@pytest.mark.parametrize("torn", ['{"step": 3, "loss": 2.0, "tok', '{"step": 3, "lo', "{", '{"step": 3}\n{"st'])
def test_a_last_line_that_was_torn_is_not_there_and_those_before_it_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], torn: str
):
    run = make_run(tmp_path, [step(1), step(2)], torn)
    assert summarise(run.path)["losses"] == [4.0, 3.0]
    assert "2 steps, 20 tokens trained on, 2 s, 100 tokens/s, 1.5 GiB" in shown(run, capsys)


def test_evaluations_are_shown_before_and_after_with_their_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [scored(0, unseen=10.0, general=20.0), step(1), scored(1, unseen=9.0, general=21.0), step(2)]
    run = make_run(tmp_path, [*lines, scored(2, unseen=5.0, general=22.0)], state="complete")
    assert summarise(run.path)["evaluations"]["unseen"]["after"]["perplexity"] == 5.0
    rows = [line.replace("│", " ").split() for line in shown(run, capsys).splitlines()]
    assert ["unseen", "perplexity", "10.00", "5.00", "-50.0%"] in rows
    assert ["general", "perplexity", "20.00", "22.00", "+10.0%"] in rows


def test_of_a_preference_run_accuracies_and_the_margin_are_shown_with_their_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = {"loss": 0.69, "accuracy": 0.5, "preference_accuracy": 0.41, "margin": 0.0, "kl": 0.1, "pairs": 64}
    after = {**before, "loss": 0.5, "accuracy": 0.75, "preference_accuracy": 0.39, "margin": 1.234}
    lines = [{"step": 0, "eval": {"unseen": before}}, {**step(1), "pairs": 8}, {"step": 1, "eval": {"unseen": after}}]
    run = make_run(tmp_path, lines, state="complete", task="preference")
    assert summarise(run.path)["results"][0] == ("unseen", "reward accuracy", Measured(0.5), Measured(0.75))
    text = shown(run, capsys)
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    # a difference, not a share: an accuracy of 0.5 is chance, and a margin begins at 0
    assert ["unseen", "reward", "accuracy", "0.50", "0.75", "+0.25"] in rows
    assert ["unseen", "preference", "accuracy", "0.41", "0.39", "-0.02"] in rows
    assert ["unseen", "reward", "margin", "0.00", "1.23", "+1.23"] in rows
    assert "perplexity" not in text and "kl" not in text.split()
    assert f"{run.path}: preference of" in text.replace("\n", "")


def test_a_measure_is_shown_with_its_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = [
        {"perplexity": value, "perplexity_low": value - 1, "perplexity_high": value + 1.5} for value in (10.0, 5.0)
    ]
    lines = [{"step": place, "eval": {"unseen": result}} for place, result in enumerate(results)]
    run = make_run(tmp_path, [lines[0], step(1), lines[1]], state="complete")
    assert "│ 10.00 (9.00–11.50) │ 5.00 (4.00–6.50) │ -50.0% │" in shown(run, capsys)


def test_an_accuracy_that_was_not_finite_is_shown_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    sets = ({"unseen": {"loss": 0.7, "margin": 0.5}}, {"unseen": {"loss": None, "margin": None}})
    run = make_run(tmp_path, [{"step": 0, "eval": sets[0]}, step(1), {"step": 1, "eval": sets[1]}])
    rows = [line.replace("│", " ").split() for line in shown(run, capsys).splitlines()]
    assert ["unseen", "reward", "margin", "0.50", "not", "finite"] in rows


def test_a_run_that_has_not_stepped_yet_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [scored(0, unseen=10.0)])
    assert summarise(run.path)["tokens_per_second"] is None
    assert "no step was done yet" in shown(run, capsys)


def test_a_run_that_was_claimed_and_never_started_is_shown(tmp_path: Path):
    run = make_run(tmp_path, [])
    run.metrics.unlink()
    run.status_file.unlink()
    assert summarise(run.path)["state"] == {"state": "new"}


def test_a_run_that_failed_shows_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [step(1)], state="failed")
    failure.record(run.failures, 1, Failure("ValueError: the first"))
    text = shown(run, capsys)
    assert f"{run.path}: sft of {tmp_path}/model, failed" in text.replace("\n", "")
    assert "cause: ValueError: the first" in text


def test_square_brackets_of_a_path_a_set_or_a_cause_are_printed_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "[bold]", [scored(0, **{"a[b]": 2.0}), step(1), scored(1, **{"a[b]": 1.0})])
    failure.record(run.failures, 0, Failure("KeyError: 'x[/red]'"))
    text = shown(run, capsys).replace("\n", "")
    assert str(run.path) in text
    assert "x[/red]" in text
    assert "a[b]" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="not a run folder") as caught:
            summarise(path)
        assert str(path) in str(caught.value)


def test_a_run_that_some_process_holds_is_running_and_one_that_none_does_was_killed(tmp_path: Path):
    run = make_run(tmp_path, [step(1)])
    with run.owned():
        assert summarise(run.path)["state"]["state"] == "running"
    assert summarise(run.path)["state"]["state"] == "killed"


def test_a_run_whose_losses_were_not_finite_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [step(1), {**step(2), "loss": None, "skipped": 1}], state="failed")
    text = shown(run, capsys)
    assert "1 steps were skipped: their gradient was not finite" in text
    assert "loss 4.0000 ▁  not finite" in text


def test_curves_of_rate_norm_speed_and_memory_are_lines_of_blocks(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    lines = [step(1, grad_norm=2.0, memory_gib=1.0), step(2, learning_rate=0.05, tokens_per_second=1900.0)]
    said = shown(make_run(tmp_path, lines), capsys).splitlines()
    assert said[-4:] == [
        "learning rate 0.1 █▁ 0.05", "gradient norm 2 █▁ 1", "tokens/s 100 ▁█ 1,900", "memory in GiB 1.0 ▁█ 1.5",
    ]  # fmt: skip


def test_one_evaluation_is_before_and_not_after(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path, [scored(0, unseen=10.0), step(1)])
    rows = [line.replace("│", " ").split() for line in shown(run, capsys).splitlines()]
    assert ["unseen", "perplexity", "10.00"] in rows
