"""What was submitted from a folder, and is found again."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tests.making import job_data
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.launch import submitted as registry
from velocity.launch.launcher import JobStatus, Submitted

JOB = TrainingJob.model_validate(job_data(Path("/data")))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sent(name: str, seconds: float = 1.0) -> Submitted:
    """It was submitted so many seconds after 1970, and recorded."""
    one = Submitted(
        name, "ssh", f"process {name}", registry.folder_of(name), ("runs/a",), seconds, {"region": "x"}, (None,)
    )
    registry.record(one)
    return one


def told(one: Submitted) -> str:
    """All of it, whether its sequences are tuples or lists."""
    return json.dumps(asdict(one), default=str)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("runs/sft", "sft"),
        ("runs/My Run_2", "my-run-2"),
        ("s3://bucket/x/Pretrain.v2/", "pretrain-v2"),
        ("runs/7b", "job-7b"),
        ("runs/äöü", "job"),
        ("runs/" + "long-" * 20, "long-long-long-long-long"),
    ],
)
def test_a_name_is_of_the_output_and_the_time_and_allowed_wherever_names_are(output: str, words: str):
    name = registry.new_name(JOB.model_copy(update={"output": output}))
    assert re.fullmatch(rf"{words}-\d{{4}}-\d{{6}}", name)
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name) and len(name) <= 40


def test_a_name_that_is_taken_is_not_given_again():
    first = registry.new_name(JOB)
    registry.folder_of(first).mkdir(parents=True)
    second = registry.new_name(JOB)
    assert second != first and not registry.folder_of(second).exists()


def test_its_folder_is_absolute_and_below_the_folder_that_it_was_sent_from(tmp_path: Path):
    assert registry.folder_of("a-1") == tmp_path / ".velocity" / "jobs" / "a-1"


def test_what_was_recorded_is_read_again_as_it_was_oldest_first():
    later, earlier = sent("b", 2.0), sent("c", 1.0)
    assert list(map(told, registry.all_submitted())) == [told(earlier), told(later)]


def test_where_nothing_was_submitted_nothing_is_found():
    assert registry.all_submitted() == []
    with pytest.raises(UserError, match="nothing was submitted from this folder"):
        registry.find("a")


def test_a_folder_whose_job_was_refused_by_its_target_is_not_listed():
    registry.write_files(registry.folder_of("refused"), {"job.yaml": "task: sft"})
    assert registry.all_submitted() == []


def test_one_is_found_by_its_name_its_id_or_the_beginning_of_its_name_the_newest_first():
    old, new = sent("sft-1", 1.0), sent("sft-12", 2.0)
    assert told(registry.find("sft-1")) == told(old), "not the newer one whose name begins so"
    assert told(registry.find("process sft-12")) == told(registry.find("sft")) == told(new)


def test_a_name_that_none_has_is_refused_with_those_that_there_are():
    sent("sft-1")
    with pytest.raises(UserError) as caught:
        registry.find("dpo")
    [problem] = caught.value.problems
    assert problem.what == "no job named dpo was submitted from here" and problem.fix == "one of: sft-1"


def test_its_files_are_closed_to_others():
    folder = registry.folder_of("a")
    registry.write_files(folder, {"job.yaml": "task: sft\n"})
    assert (folder / "job.yaml").read_text() == "task: sft\n"
    assert folder.stat().st_mode & 0o007 == 0


def test_how_it_ended_is_kept():
    one = sent("a")
    assert registry.kept_status(one) is None
    registry.keep_status(one, JobStatus("failed", 1, "IndexError\n  where: rank 1"))
    assert registry.kept_status(one) == JobStatus("failed", 1, "IndexError\n  where: rank 1")
    assert registry.kept_status(replace(one, folder=registry.folder_of("b"))) is None
