"""When an attempt saves: as late as it can, and early enough for one more step, the save behind it and leaving."""

from __future__ import annotations

import pytest

from velocity.training.deadline import LEAVING_SECONDS, SLACK, Deadline


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def near_after(deadline: Deadline, clock: Clock) -> float:
    """Seconds from now until the deadline is near, to the second."""
    begun = clock.now
    while not deadline.is_near:
        clock.now += 1
    clock.now, waited = begun, clock.now - begun
    return waited


def test_it_leaves_room_for_one_more_step_the_save_and_leaving():
    clock = Clock()
    deadline = Deadline(3600, 0, clock)
    deadline.step_took(20)
    deadline.step_took(5)  # the longest one counts
    deadline.saves_take(100)
    assert deadline.reserve_seconds == pytest.approx(SLACK * 120 + LEAVING_SECONDS)
    assert near_after(deadline, clock) == 3600 - 144 - LEAVING_SECONDS


def test_what_was_over_when_the_ranks_came_counts():
    clock = Clock()
    assert near_after(Deadline(3600, 1000, clock), clock) == near_after(Deadline(3600, 0, clock), clock) - 1000
    assert Deadline(3600, 3600, clock).is_near


@pytest.mark.parametrize(("seconds", "assumed"), [(60, 6), (5400, 540), (12 * 3600, 600), (2 * 86400, 600)])
def test_before_the_first_save_a_tenth_of_the_time_is_kept_for_it_and_ten_minutes_at_most(seconds: int, assumed: int):
    deadline = Deadline(seconds, 0, Clock())
    deadline.saves_take(0.0)
    assert deadline.reserve_seconds == pytest.approx(SLACK * assumed + LEAVING_SECONDS)
    deadline.saves_take(2.0)
    assert deadline.reserve_seconds == pytest.approx(SLACK * 2 + LEAVING_SECONDS)


def test_while_a_save_goes_on_behind_the_steps_its_rest_is_waited_for_as_well():
    clock = Clock()
    deadline = Deadline(3600, 0, clock)
    deadline.saves_take(100)
    deadline.saving()
    assert deadline.reserve_seconds == pytest.approx(SLACK * 200 + LEAVING_SECONDS)
    clock.now += 70
    assert deadline.reserve_seconds == pytest.approx(SLACK * 130 + LEAVING_SECONDS)
    clock.now += 70
    assert deadline.reserve_seconds == pytest.approx(SLACK * 100 + LEAVING_SECONDS)
