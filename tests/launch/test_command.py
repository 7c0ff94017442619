"""Jobs are sent, followed, listed and cancelled, over a target that is three lines of Python."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.errors import InterruptedRun, JobError, UserError, VelocityError
from velocity.launch import command
from velocity.launch import submitted as registry
from velocity.launch.launcher import JobStatus, Submission, Submitted
from velocity.runs.folder import RunFolder


@dataclass
class Target:
    """A target whose status a test sets; `done` is what it was asked for, in order."""

    now: JobStatus = JobStatus("running")
    refuses: VelocityError | None = None
    done: list[str] = field(default_factory=list)

    def render(self, submission: Submission) -> Mapping[str, str]:
        return {"sent.sh": f"run {submission.name}\n"}

    def check(self, submission: Submission) -> None:
        self.done.append("check")
        if self.refuses:
            raise self.refuses

    def submit(self, submission: Submission) -> Submitted:
        files = sorted(file.name for file in submission.folder.iterdir())
        self.done.append(f"submit {' '.join(files)}")
        return Submitted(submission.name, "ssh", "7", submission.folder, ("run",), 1.0)

    def status(self, _: Submitted) -> JobStatus:
        self.done.append("status")
        if isinstance(self.refuses, VelocityError):
            raise self.refuses
        return self.now

    def logs(self, _: Submitted, *, follow: bool) -> Iterator[str]:
        yield f"follow {follow}"

    def cancel(self, one: Submitted) -> None:
        self.done.append(f"cancel {one.name}")


@pytest.fixture(name="target")
def _target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    monkeypatch.chdir(tmp_path)
    target = Target()
    monkeypatch.setattr(command, "build_launcher", lambda kind: target)
    return target


def submission(folder: Path, *names: str, overrides: tuple[str, ...] = ()) -> Submission:
    launch = {"kind": "ssh", "hosts": "a"}
    files = [write_job(folder / name / "job.yaml", output=f"run-{name}", launch=launch) for name in names or ("a",)]
    return command.make_submission([load_job(file) for file in files], overrides)


def test_a_submission_has_its_jobs_files_in_order_under_names_of_their_own(tmp_path: Path, target: Target):
    made = submission(tmp_path, "b", "a", overrides=("seed=1",))
    assert list(made.files) == ["1-job.yaml", "2-job.yaml"]
    assert "output: run-b" in made.files["1-job.yaml"] and made.jobs[1].output == "run-a"
    assert made.name.startswith("run-a-") and made.folder == registry.folder_of(made.name)
    assert made.overrides == ("seed=1",) and made.launch.names == ("a",)


def test_jobs_of_one_call_run_in_one_place(tmp_path: Path, target: Target):
    one, other = (
        load_job(write_job(tmp_path / name / "job.yaml", launch={"kind": "ssh", "hosts": name})) for name in "ab"
    )
    with pytest.raises(UserError, match="differ in their launch section"):
        command.make_submission([one, other], ())


def test_what_is_shown_is_the_job_files_and_what_the_target_renders_and_nobody_is_asked(tmp_path: Path, target: Target):
    made = submission(tmp_path)
    assert command.rendered(made) == {**made.files, "sent.sh": f"run {made.name}\n"}
    assert target.done == [] and not made.folder.exists()


def test_a_job_is_checked_then_written_then_sent_then_recorded(tmp_path: Path, target: Target):
    made = submission(tmp_path)
    sent = command.submit(made)
    assert target.done == ["check", "submit 1-job.yaml sent.sh"]
    assert registry.find(made.name) == sent


def test_what_its_target_refuses_leaves_nothing(tmp_path: Path, target: Target):
    target.refuses = UserError("unknown host a")
    with pytest.raises(UserError, match="unknown host"):
        command.submit(submission(tmp_path))
    assert target.done == ["check"] and not registry.JOBS.exists()


def test_a_job_that_is_over_is_asked_for_once(tmp_path: Path, target: Target):
    sent = command.submit(submission(tmp_path))
    assert command.status(sent).state == command.status(sent).state == "running"
    target.now = JobStatus("failed", 1, "IndexError")
    assert command.status(sent) == target.now
    target.done.clear()
    assert command.status(sent) == target.now and target.done == []


def test_following_writes_its_lines_and_says_how_it_ended(tmp_path: Path, target: Target):
    sent, lines = command.submit(submission(tmp_path)), list[str]()
    target.now = JobStatus("complete", 0)
    assert command.follow(sent, lines.append) == target.now
    assert lines == ["follow True"]


def test_without_following_its_lines_go_to_standard_output(
    tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]
):
    sent = command.submit(submission(tmp_path))
    capsys.readouterr()
    command.print_lines(sent)
    assert capsys.readouterr().out == "follow False\n"


@pytest.mark.parametrize(
    ("ended", "kind", "exit_status"),
    [
        (JobStatus("interrupted", 75, "stopped after step 3"), InterruptedRun, 75),
        (JobStatus("cancelled"), InterruptedRun, 75),
        (JobStatus("failed", 1, "IndexError\n  where: rank 1 on b"), JobError, 1),
        (JobStatus("failed", 2, "no such file"), JobError, 2),
        (JobStatus("failed", 137), JobError, 137),
        (JobStatus("failed"), JobError, 1),
    ],
)
def test_the_jobs_exit_status_becomes_ours_and_its_own_words_say_why(
    tmp_path: Path, target: Target, ended: JobStatus, kind: type[VelocityError], exit_status: int
):
    sent = command.submit(submission(tmp_path))
    with pytest.raises(kind) as caught:
        command.conclude(sent, ended)
    assert caught.value.exit_status == exit_status
    assert str(caught.value).startswith(ended.why or f"{sent.name} is {ended.state}")
    assert str(caught.value).count("  where: ") == 1


def test_a_complete_job_is_no_error(tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]):
    sent = command.submit(submission(tmp_path))
    command.conclude(sent, JobStatus("complete", 0))
    assert capsys.readouterr().err.splitlines()[-1] == f"done: {sent.name}"


def test_cancelling_asks_the_target(tmp_path: Path, target: Target):
    sent = command.submit(submission(tmp_path))
    assert command.cancel(sent.name[:5]) == sent
    assert target.done[-1] == f"cancel {sent.name}"


def test_the_list_says_where_each_is_and_a_target_that_does_not_answer_is_no_error(
    tmp_path: Path, target: Target, capsys: pytest.CaptureFixture[str]
):
    sent = command.submit(submission(tmp_path))
    target.refuses = JobError("the cluster does not answer", "cluster")
    [row] = command.listed()
    assert (row["name"], row["state"], row["why"]) == (sent.name, "unknown", "the cluster does not answer")
    assert json.loads(json.dumps(row))["outputs"] == ["run"]
    command.print_listed([row])
    printed = capsys.readouterr()
    assert sent.name in printed.out and "the cluster does not answer" in printed.err
    target.refuses = None
    assert command.listed()[0]["state"] == "running"


def test_an_old_run_is_moved_aside_and_not_while_somebody_writes_it(tmp_path: Path, target: Target):
    loaded = load_job(write_job(tmp_path / "job.yaml", output="run"))
    command.move_aside([loaded])
    Path("run").mkdir()
    with RunFolder("run").owned(), pytest.raises(UserError, match="held"):
        command.move_aside([loaded])
    assert Path("run").exists()
    command.move_aside([loaded])
    assert not Path("run").exists() and len([*tmp_path.glob("run.*")]) == 1
