"""lm-eval's tasks on our engines, on one rank and on two: the figures of lm-eval's own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating import claimed, planned, rows_of, whole_model, write_evaluate_job
from tests.evaluation.benchmarking import QUESTIONS, write_tasks
from tests.making import tiny_model_folder
from tests.pool import Pool
from velocity.checkpoints.restore import fetch_shards
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.errors import InterruptedRun, UserError
from velocity.evaluation.run import evaluate
from velocity.runs.folder import RunFolder

TASKS = ["both", "colours_bare", "likely", "said"]
LENGTH = 128  # of what the model is shown at once; the longest text takes several windows


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("benchmarks")
    tiny_model_folder(here / "model")
    (here / "tasks").mkdir()
    write_tasks(here / "tasks")
    return here


@pytest.fixture(name="told", scope="module")
def _told(folder: Path) -> dict[str, Any]:
    """What lm-eval says of the model by its own means."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    model, tokenizer = whole_model(folder / "model"), load_tokenizer(folder / "model")
    own = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=4, max_length=LENGTH)
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    told = simple_evaluate(own, tasks=TASKS, task_manager=manager, bootstrap_iters=0)
    assert told is not None
    return told


def claim_in(folder: Path, output: Path, **changes: Any) -> RunFolder:
    wanted = {
        "output": str(output), "data.eval": {}, "data.sequence_length": LENGTH,
        "benchmarks": {"tasks": TASKS, "folder": str(folder / "tasks")}, **changes,
    }  # fmt: skip
    return claimed(planned(write_evaluate_job(folder / "job.yaml", wanted)))


def assert_alike(run: RunFolder, told: dict[str, Any]) -> None:
    benchmarks = json.loads(run.evaluation.read_text())["benchmarks"]
    assert list(benchmarks) == TASKS
    for task in TASKS:
        result = told["results"][task]
        known = {key.partition(",")[0]: value for key, value in result.items() if "," in key and "_stderr" not in key}
        found = {name: one["value"] for name, one in benchmarks[task]["measures"].items()}
        assert found == pytest.approx(known, rel=1e-4), task
    said = [sample["filtered_resps"] for sample in told["samples"]["said"]]
    assert [row["responses"] for row in rows_of(run.path, "benchmark-said")] == said


def _evaluate_on(ranks: Ranks, run: Path) -> None:
    evaluate(RunFolder(run), ranks)


def test_one_rank_has_the_figures_of_lm_evals_own_model(folder: Path, tmp_path: Path, told: dict[str, Any]):
    run = claim_in(folder, tmp_path / "run")
    evaluate(run, Ranks())
    assert_alike(run, told)
    assert len(rows_of(run.path, "benchmark-both")) == 2 * len(QUESTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "strategy"),
    [("transformers", {}), ("deepspeed", {"strategy.tensor": 2}), ("zero", {})],
    ids=["transformers", "split", "streamed"],
)
def test_two_ranks_have_them_with_every_engine(
    folder: Path, tmp_path: Path, told: dict[str, Any], pool: Pool, engine: str, strategy: dict[str, Any]
):
    changes = {"generation.engine": engine, "launch": {"processes": 2}, **strategy}
    run = claim_in(folder, tmp_path / engine, **changes)
    pool(_evaluate_on, run.path)
    assert_alike(run, told)


def test_a_benchmark_that_is_done_is_not_run_again(folder: Path, tmp_path: Path, told: dict[str, Any]):
    """Its result lies beside the shards; one that says something else is believed."""
    run = claim_in(folder, tmp_path / "run", benchmarks={"tasks": ["said"], "folder": str(folder / "tasks")})
    run.shards.mkdir(parents=True, exist_ok=True)
    (run.shards / "benchmark-said.json").write_text(json.dumps({"figures": {"rows": 0, "measures": {}}, "rows": []}))
    evaluate(run, Ranks())
    assert json.loads(run.evaluation.read_text())["benchmarks"]["said"] == {"rows": 0, "measures": {}}


def test_a_benchmark_that_is_done_lies_at_the_mirror_while_others_are_not(folder: Path, tmp_path: Path):
    tasks, url = ["colours_bare", "said"], str(tmp_path / "mirror")
    changes = {"benchmarks": {"tasks": tasks, "folder": str(folder / "tasks")}, "checkpoint": {"mirror": url}}
    run = claim_in(folder, tmp_path / "run", **changes)
    done = run.shards / "benchmark-colours_bare.json"
    with pytest.raises(InterruptedRun):
        evaluate(run, Ranks(), done.is_file)
    shutil.rmtree(run.shards)
    assert fetch_shards(url, run.path) == 1
    assert done.is_file()


def test_a_benchmark_that_there_is_not_ends_the_job_with_the_nearest_name(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="did you mean colours"):
        evaluate(
            claim_in(folder, tmp_path / "run", benchmarks={"tasks": ["colour"], "folder": str(folder / "tasks")}),
            Ranks(),
        )
