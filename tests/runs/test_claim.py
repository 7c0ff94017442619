"""Before any rank exists: whose a run folder is, when it is complete, what is written down, what is refused."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
import yaml

from tests.making import chat, generate_data, write_jsonl
from tests.running import MACHINE, claimed, inputs_of, planned, prepare_folder
from velocity.config.load import load_job, read_resolved
from velocity.distributed import failure
from velocity.distributed.ds_config import deepspeed_config
from velocity.distributed.failure import Failure
from velocity.errors import UserError
from velocity.runs.claim import Manifest, check_startable, claim, is_complete
from velocity.runs.folder import RunFolder


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, data, and their cache: no test changes them."""
    return prepare_folder(tmp_path_factory.mktemp("claim"))


def finish(run: RunFolder) -> None:
    """What the end of a training leaves."""
    run.model.mkdir()
    run.set_status("complete", steps=2)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_claimed_folder_holds_the_job_the_deepspeed_configuration_and_the_environment(folder: Path, tmp_path: Path):
    job = planned(folder, tmp_path / "run", "launch.processes=2", "strategy.zero=2")
    run = claimed(job)
    assert read_resolved(run.job) == job.job
    assert json.loads(run.deepspeed.read_text()) == deepspeed_config(job.job, 2)
    environment = json.loads(run.environment.read_text())
    assert environment["world_size"] == 2
    assert environment["hardware"] == {"cores": 2, "memory_gib": 8.0, "cpu_bf16": False, "gpus": []}
    assert environment["versions"]["torch"].startswith("2.")
    (entry,) = environment["data"]["train"]
    assert (entry["records"], entry["path"]) == (60, str(folder / "train.jsonl"))
    assert len(entry["hashes"]) == 1 and Path(entry["store"]).is_dir()
    assert run.status() == {"state": "running", "inputs": inputs_of(job).hash}
    assert not run.rejected.exists()


def test_records_that_were_left_out_are_listed_in_the_run_with_place_and_reason(folder: Path, tmp_path: Path):
    rows = [chat("Why?", "So."), {"messages": "no"}, chat("When?", "Now."), {"text": 3}]
    bad = write_jsonl(tmp_path / "bad.jsonl", rows)
    job = planned(folder, tmp_path / "run", f"data.train={bad}", f"data.eval={bad}", "data.on_bad_record=skip")
    lines = [json.loads(line) for line in claimed(job).rejected.read_text().splitlines()]
    assert [(line["file"], line["line"], line["field"]) for line in lines] == [
        (str(bad), 2, "messages"), (str(bad), 4, "text"),
    ] * 2  # fmt: skip
    assert lines[1]["reason"] == "'text' is int, not text"


@pytest.mark.parametrize(
    "override",
    ["duration.steps=9", "strategy.zero=3", "strategy.recompute=layers", "launch.processes=2", "checkpoint.every=7",
     "tracking=tensorboard", "batch.micro=1", "data.processes=2", "data.eval_every=3"],
)  # fmt: skip
def test_a_run_goes_on_under_settings_that_do_not_change_what_it_computes(folder: Path, tmp_path: Path, override: str):
    run = claimed(planned(folder, tmp_path / "run"))
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')
    changed = planned(folder, tmp_path / "run", override)
    assert claimed(changed).path == run.path
    assert read_resolved(run.job) == changed.job, "the folder describes the job as it is now"
    assert run.metrics.read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "override", ["seed=1", "optimizer.learning_rate=0.2", "data.sequence_length=512", "batch.rows=2"]
)
def test_another_job_is_refused_by_what_differs_and_changes_nothing(folder: Path, tmp_path: Path, override: str):
    run = claimed(planned(folder, tmp_path / "run"))
    before = tree(run.path)
    key, _, value = override.partition("=")
    with pytest.raises(UserError, match=rf"belongs to another job; different: {key}: .* → {value}") as caught:
        claimed(planned(folder, tmp_path / "run", override))
    assert "--fresh" in str(caught.value)
    assert tree(run.path) == before


def test_of_many_differences_three_are_named_and_the_others_counted(folder: Path, tmp_path: Path):
    claimed(planned(folder, tmp_path / "run"))
    changes = ["seed=1", "batch.rows=2", "optimizer.learning_rate=0.2", "optimizer.momentum=0.5", "data.packing=false"]
    with pytest.raises(UserError, match=r"seed: 0 → 1; .*; .*, and 2 more"):
        claimed(planned(folder, tmp_path / "run", *changes))


def test_the_same_job_on_data_with_another_content_is_another_job(folder: Path, tmp_path: Path):
    data = write_jsonl(tmp_path / "data.jsonl", [chat("Why?", "So.")])
    job = planned(folder, tmp_path / "run", f"data.train={data}")
    claimed(job)
    write_jsonl(data, [chat("Why?", "Not so.")])
    with pytest.raises(UserError, match="different: the content of the model or of the data"):
        claimed(job)


def test_fresh_moves_the_old_run_aside_whole(folder: Path, tmp_path: Path):
    old = tree(claimed(planned(folder, tmp_path / "run")).path)
    run = claimed(planned(folder, tmp_path / "run", "seed=1"), fresh=True)
    assert read_resolved(run.job).seed == 1
    (aside,) = tmp_path.glob("run.*")
    assert tree(aside) == old


def test_fresh_is_harmless_where_there_is_nothing_to_move(folder: Path, tmp_path: Path):
    assert claimed(planned(folder, tmp_path / "run"), fresh=True).job.is_file()
    assert [path.name for path in tmp_path.glob("run*")] == ["run"]


def test_a_folder_with_something_else_in_it_is_refused_and_an_empty_one_is_taken(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("three years")
    with pytest.raises(UserError, match="not empty, and no run of Velocity"):
        claimed(planned(folder, tmp_path / "run"))
    assert tree(tmp_path / "run") == {"thesis.txt": b"three years"}
    (tmp_path / "run" / "thesis.txt").unlink()
    assert claimed(planned(folder, tmp_path / "run")).job.is_file()


def test_a_new_attempt_forgets_why_the_last_one_failed(folder: Path, tmp_path: Path):
    run = claimed(planned(folder, tmp_path / "run"))
    failure.record(run.failures, 0, Failure("the disk was full"))
    run.set_status("failed", cause="the disk was full")
    assert failure.cause(claimed(planned(folder, tmp_path / "run")).failures) is None
    assert run.status()["state"] == "running"


def test_a_run_is_complete_once_it_has_ended_with_a_model(folder: Path, tmp_path: Path):
    job = planned(folder, tmp_path / "run")
    inputs = inputs_of(job).hash
    assert not is_complete(job, inputs), "nothing is there"
    run = claimed(job)
    assert not is_complete(job, inputs), "it runs"
    finish(run)
    assert is_complete(job, inputs)
    shutil.rmtree(run.model)
    assert not is_complete(job, inputs), "its model is gone"


@pytest.mark.parametrize(
    ("override", "complete"),
    [("seed=1", False), ("duration.steps=3", False), ("optimizer.momentum=0.5", False),
     ("strategy.zero=3", True), ("launch.processes=2", True), ("tracking=tensorboard", True)],
)  # fmt: skip
def test_a_complete_run_answers_for_the_same_job_of_the_same_duration_only(
    folder: Path, tmp_path: Path, override: str, complete: bool
):
    finish(claimed(planned(folder, tmp_path / "run")))
    changed = planned(folder, tmp_path / "run", override)
    assert is_complete(changed, inputs_of(changed).hash) is complete


def test_a_complete_run_does_not_answer_for_data_with_another_content(folder: Path, tmp_path: Path):
    data = write_jsonl(tmp_path / "data.jsonl", [chat("Why?", "So.")])
    job = planned(folder, tmp_path / "run", f"data.train={data}")
    finish(claimed(job))
    assert is_complete(job, inputs_of(job).hash)
    write_jsonl(data, [chat("Why?", "Not so.")])
    assert not is_complete(job, inputs_of(job).hash)


@pytest.mark.parametrize("state", ["running", "interrupted", "failed"])
def test_a_run_that_has_not_ended_well_is_not_complete_though_a_model_lies_there(
    folder: Path, tmp_path: Path, state: str
):
    job = planned(folder, tmp_path / "run")
    run = claimed(job)
    finish(run)
    run.set_status(state)
    assert not is_complete(job, inputs_of(job).hash)


def test_a_generate_job_is_complete_once_its_completions_are_put_together(tmp_path: Path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(generate_data(tmp_path)))
    job = load_job(tmp_path / "job.yaml", ["launch.processes=1"])
    run = claim(job, Manifest("of the inputs", {"model_folder": "m"}, [], {}), MACHINE.describe(), fresh=False)
    assert json.loads(run.environment.read_text())["model_folder"] == "m"
    run.set_status("complete")
    assert not is_complete(job, "of the inputs"), "there is no result"
    run.completions["jsonl"].touch()
    assert is_complete(job, "of the inputs")
    assert not is_complete(job, "of other inputs")
    assert is_complete(load_job(tmp_path / "job.yaml", ["launch.processes=2"]), "of the inputs")
    assert not is_complete(load_job(tmp_path / "job.yaml", ["generation.temperature=1"]), "of the inputs")


def test_a_run_folder_is_closed_to_others(folder: Path, tmp_path: Path):
    run = claimed(planned(folder, tmp_path / "run"))
    assert not stat.S_IMODE(run.path.stat().st_mode) & 0o007


@pytest.mark.parametrize("exposed", ["path", "checkpoints"])
def test_a_run_into_whose_state_anybody_may_write_does_not_go_on(folder: Path, tmp_path: Path, exposed: str):
    job = planned(folder, tmp_path / "run")
    run = claimed(job)
    run.checkpoints.mkdir()
    where: Path = getattr(run, exposed)
    where.chmod(0o777)
    with pytest.raises(UserError, match="the run's state is not to be trusted: anybody may write into it") as caught:
        check_startable(job)
    assert str(where) in str(caught.value) and "chmod o-w" in str(caught.value)
    check_startable(job, fresh=True)  # nothing of it is loaded
    where.chmod(0o750)
    check_startable(job)


def test_an_empty_output_folder_that_is_open_to_all_is_closed_before_anything_lies_in_it(folder: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    claimed(planned(folder, tmp_path / "run"))
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o770
