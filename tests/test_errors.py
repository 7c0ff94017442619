"""What an error says, in how many lines, and which exit status it becomes."""

from __future__ import annotations

import errno

import pytest

from velocity.errors import InterruptedRun, JobError, Problem, UserError, VelocityError, from_system


def test_a_problem_says_what_where_and_what_to_do_in_three_lines():
    assert str(Problem("it is wrong", "job.yaml:3", "mend it")) == "it is wrong\n  where: job.yaml:3\n  fix:   mend it"


def test_what_is_not_known_takes_no_line():
    assert str(Problem("it is wrong")) == "it is wrong"
    assert str(Problem("it is wrong", fix="mend it")) == "it is wrong\n  fix:   mend it"


def test_an_error_of_several_problems_says_them_all_in_their_order():
    error = UserError([Problem("one", "a"), Problem("other", fix="b")])
    assert str(error) == "one\n  where: a\nother\n  fix:   b"
    assert [problem.what for problem in error.problems] == ["one", "other"]


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (JobError, 1), (InterruptedRun, 75)])
def test_each_kind_of_error_has_its_exit_status(kind: type[VelocityError], status: int):
    error = kind("what", "where", "fix")
    assert error.exit_status == status
    assert error.problems == (Problem("what", "where", "fix"),)


def test_the_exit_status_of_one_error_can_be_set_without_changing_its_kind():
    error = JobError("what a rank said")
    error.exit_status = 2
    assert (error.exit_status, JobError("another").exit_status) == (2, 1)


def test_what_the_system_refused_names_the_path_and_what_to_do_about_a_full_disk():
    full = from_system(OSError(errno.ENOSPC, "no room", "/runs/model"), "rank 1 on here")
    assert "No space left on device\n  where: /runs/model, rank 1 on here\n  fix:   free space" in str(full)
    assert "check the path and its rights" in str(from_system(PermissionError(errno.EACCES, "no", "/runs")))


def test_an_error_of_a_connection_is_not_taken_for_one_of_a_file():
    lost = str(from_system(ConnectionError("the server hung up"), "rank 0 on here"))
    assert lost.startswith("ConnectionError: the server hung up\n  where: rank 0 on here") and "rights" not in lost
