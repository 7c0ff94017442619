"""What a container on SageMaker fetches at its start, and what it leaves at its end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sagemaker_account import PLANTED, Account, account
from velocity.errors import InterruptedRun, JobError, UserError
from velocity.launch.sagemaker.failure import status_of
from velocity.launch.sagemaker.node import begin, leave
from velocity.launch.sagemaker.secrets import variables_of


@pytest.fixture(name="aws", scope="module")
def _aws() -> Iterator[Account]:
    with account() as made:
        yield made


def test_secrets_stand_in_the_environment(aws: Account):
    environment = {**variables_of({"HF_TOKEN": aws.secret}), "OTHER": "x"}
    begin(environment)
    assert environment["HF_TOKEN"] == PLANTED
    assert environment["OTHER"] == "x"


def test_without_secrets_nobody_is_asked():
    environment = {"OTHER": "x"}
    begin(environment)
    assert environment == {"OTHER": "x"}


@pytest.mark.parametrize(
    ("error", "state"),
    [(UserError("a", "b", "c"), "failed"), (JobError("a", "b", "c"), "failed"), (InterruptedRun("a"), "interrupted")],
)
def test_what_is_left_says_how_it_ended(tmp_path: Path, error: JobError, state: str):
    file = tmp_path / "output" / "failure"
    leave(error, file)
    reason = f"AlgorithmError: {file.read_text()}, exit code: {error.exit_status}"
    status = status_of({"TrainingJobStatus": "Failed", "SecondaryStatus": "Failed", "FailureReason": reason})
    assert (status.state, status.exit_status, status.why) == (state, error.exit_status, str(error))


def test_no_secret_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", PLANTED)
    leave(JobError(f"the hub refuses {PLANTED}"), tmp_path / "failure")
    assert PLANTED not in (tmp_path / "failure").read_text()


def test_where_nothing_can_be_written_the_error_stays_the_first(tmp_path: Path):
    (tmp_path / "file").write_text("")
    leave(JobError("a"), tmp_path / "file" / "failure")
