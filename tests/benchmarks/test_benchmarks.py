"""The benchmarks import, and what they compute from measurements is right. Nothing is measured here."""

from __future__ import annotations

import ast
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import contest
import ragged
import run
import train_throughput
from reporting import Figure, Report, append, machine, ratio, table
from train_contenders import CONTENDERS, job_text

FOLDER = Path(contest.__file__).parent
RESULT = {"tokens": 1000, "trained": 600, "steps": 2, "seconds": 10.0, "loss": 2.0, "peak_bytes": 2**30}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_every_script_imports_without_a_framework_of_its_own(name: str):
    importlib.import_module(name)
    heavy = {"torch", "transformers", "trl", "datasets", "deepspeed", "velocity"}
    top = ast.parse((FOLDER / f"{name}.py").read_text("utf-8")).body
    imported = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    imported |= {(node.module or "").split(".")[0] for node in top if isinstance(node, ast.ImportFrom)}
    assert not imported & heavy, "the parent of a contender stays small, and takes no core from it"


@pytest.mark.parametrize("name", run.SCRIPTS)
def test_the_first_line_of_a_benchmark_is_the_question_that_it_answers(name: str):
    assert str(importlib.import_module(name).__doc__).strip().endswith("?")


def test_every_benchmark_with_a_question_is_run():
    asking = {path.stem for path in FOLDER.glob("*.py") if path.read_text("utf-8").splitlines()[0].endswith('?"""')}
    assert asking == {*run.SCRIPTS, "gpu_throughput"}, "the last needs a GPU: make bench-gpu"


def test_a_ratio_is_ours_over_theirs():
    assert ratio(3.0, 2.0) == 1.5


@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_ratio_of_nothing_measured_is_refused(ours: float, theirs: float):
    with pytest.raises(ValueError, match="nothing was measured"):
        ratio(ours, theirs)


def test_a_table_has_its_first_column_left_and_numbers_right():
    assert table(("who", "s"), [["a", "1.5"], ["bcde", "10.25"]]).splitlines() == [
        "who       s",
        "----  -----",
        "a       1.5",
        "bcde  10.25",
    ]


def test_a_figure_is_met_at_its_target_from_either_side():
    assert Figure("speed", 1.6, target=1.6).met is True
    assert Figure("speed", 1.59, target=1.6).met is False
    assert Figure("time", 0.3, "s", 0.3, at_most=True).met is True
    assert Figure("time", 0.31, "s", 0.3, at_most=True).met is False
    assert Figure("speed", 1.0).met is None
    assert Figure("time", 0.31, "s", 0.3, at_most=True).cells() == ["time", "0.31 s", "≤ 0.3 s", "NO"]


def test_a_report_survives_its_json_line_into_the_summary():
    figures = [Figure("speed", 1.7, target=1.6), Figure("time", 0.2, "s", 0.3, at_most=True)]
    report = Report("b", "How fast?", ("who", "s"), [["us", "1"]], figures, facts={"chats": 8})
    entry = json.loads(json.dumps(report.describe()))
    assert entry["rows"] == [{"who": "us", "s": "1"}]
    assert entry["chats"] == 8
    assert run.rows("b", entry) == [["b", *figure.cells()] for figure in figures]
    assert run.rows("b", None)[0][-1] == "NO"


def test_saved_results_are_appended(tmp_path: Path):
    path = tmp_path / "results" / "b.json"
    append(path, {"value": 1})
    append(path, {"value": 2})
    assert json.loads(path.read_text()) == [{"value": 1}, {"value": 2}]


def test_a_result_names_the_machine_and_the_versions():
    known = machine()
    assert known["hardware"]["cores"] >= 1
    assert known["versions"]["torch"]


def test_the_chosen_chats_are_spread_evenly_and_the_same_every_time():
    assert ragged.spread(range(100), 4) == [0, 25, 50, 75]
    assert ragged.spread(range(10), 3) == [0, 3, 6]
    assert ragged.spread(range(3), 8) == [0, 1, 2]
    chosen = ragged.spread(range(6529), 96)
    assert len(set(chosen)) == 96
    assert {b - a for a, b in zip(chosen, chosen[1:], strict=False)} == {
        68
    }  # 6529 / 96 = 68.01, and the hundredths do not add up to one


def test_records_are_repeated_from_the_beginning():
    assert list(ragged.repeated("abc", 7)) == list("abcabca")
    assert list(ragged.repeated("abc", 2)) == list("ab")


def test_a_corpus_grows_to_the_size_asked_for():
    assert list(ragged.up_to(["12\n", "345\n"], 8)) == ["12\n", "345\n", "12\n"]  # 3 + 4 = 7 < 8 <= 10


def test_records_come_back_from_their_file(tmp_path: Path):
    records: list[dict[str, Any]] = [{"messages": [{"role": "user", "content": "é\n"}]}, {"id": 2}]
    assert ragged.write_records(tmp_path / "a.jsonl", records) == 2
    assert ragged.read_records(tmp_path / "a.jsonl") == records


def test_a_missing_corpus_is_said_with_its_remedy(tmp_path: Path):
    with pytest.raises(SystemExit, match="make demo"):
        ragged.read_records(tmp_path / "none.jsonl")


def test_rounds_alternate_their_order():
    assert contest.order(["a", "b", "c"], 3) == [*"abc", *"cba", *"abc"]


def test_the_best_round_counts():
    seconds = iter([3.0, 5.0, 4.0, 2.0])  # a, b, b, a
    results = contest.hold(["a", "b"], 2, lambda name: {"seconds": next(seconds), "name": name})
    assert results == {"a": {"seconds": 2.0, "name": "a"}, "b": {"seconds": 4.0, "name": "b"}}


def test_the_least_of_another_measure_can_count():
    found = iter([{"seconds": 1.0, "bytes": 9}, {"seconds": 2.0, "bytes": 8}])
    assert contest.hold(["a"], 2, lambda name: next(found), least="bytes")["a"]["bytes"] == 8


def test_only_our_environment_has_what_velocity_run_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")
    plain, ours = contest.plain_environment(tmp_path), contest.velocity_environment(tmp_path)
    assert not {"OMP_NUM_THREADS", "MALLOC_TOP_PAD_", "MALLOC_MMAP_THRESHOLD_"} & set(plain)
    assert "OMP_NUM_THREADS" in ours
    assert plain["PATH"]


def test_a_script_gives_its_last_line_and_its_failure_is_shown(tmp_path: Path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('chatter')\nprint('{\"seconds\": 1}')\nsys.exit(sys.argv[1:] == ['fail'])\n")
    environment = contest.plain_environment(tmp_path)
    assert contest.run_script(script, [], environment)["seconds"] == 1
    with pytest.raises(RuntimeError, match="chatter"):
        contest.run_script(script, ["fail"], environment)


def test_a_machine_that_others_use_is_said():
    assert contest.disturbed({"a": {"others_cores": 0.02}, "b": {}}) == []
    assert "1.5 cores" in contest.disturbed({"a": {"others_cores": 1.5}, "b": {"others_cores": 0.0}})[0]


def test_the_peak_is_that_of_this_process():
    assert 2**20 < contest.peak_bytes() < 2**40


def test_every_comparison_is_between_contenders_that_exist():
    assert {name for _, ours, theirs, _ in train_throughput.COMPARISONS for name in (ours, theirs)} <= set(CONTENDERS)
    assert all(contender.our_environment for name, contender in CONTENDERS.items() if name.startswith("velocity"))
    assert len({contender.title for contender in CONTENDERS.values()}) == len(CONTENDERS)


def test_the_speed_ratio_is_that_of_tokens_a_second():
    results: dict[str, Any] = {"velocity-fp32": {**RESULT, "seconds": 5.0}, "trl-padded": RESULT}
    figures = train_throughput.figures(results)
    assert [(figure.value, figure.target, figure.met) for figure in figures] == [(2.0, 1.6, True)]
    assert train_throughput.rows(results)[1][1:4] == ["100.0", "10.0", "2"]


def test_contenders_that_did_other_work_are_refused():
    train_throughput.check_equal_work({"a": RESULT, "b": {**RESULT, "seconds": 1.0}})
    with pytest.raises(SystemExit, match="same work"):
        train_throughput.check_equal_work({"a": RESULT, "b": {**RESULT, "tokens": 999}})


def test_the_job_that_contenders_share_is_valid(tmp_path: Path):
    from velocity.config.load import load_job

    path = tmp_path / "job.yaml"
    path.write_text(job_text(tmp_path, tmp_path / "chats.jsonl", tmp_path))
    job = load_job(path, ["strategy.precision=fp32", "strategy.zero=0"]).job
    assert job.batch.rows == 1
    assert job.strategy.precision == "fp32"


def test_the_run_hands_its_inputs_and_flags_on():
    given = {"model": "m", "chats": "c", "texts": "t", "quick": True, "save": False}
    assert run.arguments("startup", given)[1:] == ["--model", "m", "--chats", "c", "--quick"]
    assert run.arguments("loss_memory", given)[1:] == ["--quick"]
