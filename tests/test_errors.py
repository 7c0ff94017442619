"""What an error says, in how many lines, and which exit status it becomes."""

from __future__ import annotations

import pytest

from velocity.errors import InterruptedRun, JobError, Problem, UserError, VelocityError


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
