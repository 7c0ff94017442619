"""A job on a real Slurm that is asked to stop, by whomever: it saves, and is put back where that is what is wanted."""

from __future__ import annotations

import signal
import time

import pytest

from tests.slurm_jobs import PATIENCE_SECONDS, Job, ended
from tests.slurm_laboratory import wait_until


@pytest.mark.slow
def test_cancel_lets_a_running_job_save_and_it_is_not_started_again(job: Job):
    job.does('until_asked; slowly "$((1 + 10 * SLURM_NODEID))"; say saved; verdict 75 "stopped after step 3"; exit 75')
    running = job.start()
    job.until_up()
    for _ in range(3):  # whoever is impatient changes nothing
        asked = job.cluster.velocity("cancel", job.place.name)
        assert asked.returncode == 0, asked.stderr
    status, said = ended(running)
    assert (status, "error: stopped after step 3" in said) == (75, True)
    assert {f"node {node} of 2: saved" for node in (0, 1)} <= set(said.splitlines()), "the slower one had its time"
    assert job.listed()["state"] == "interrupted"
    assert job.cluster.show(job.id)["JobState"] == "FAILED", "it is not back in the queue"
    assert job.cluster.velocity("cancel", job.place.name).returncode == 0, "that of a job that is over is nothing"


@pytest.mark.slow
def test_cancel_takes_a_job_that_waits_out_of_the_queue(job: Job):
    job.does("verdict 0", options=["--begin=now+1hour"])
    waiting = job.start()
    wait_until(lambda: (job.folder / ".velocity").is_dir() and (job.place / "submitted.json").exists(), "sent", 60)
    job.until("PENDING")
    assert job.listed()["state"] == "waiting"
    job.cluster.velocity("cancel", job.place.name)
    status, said = ended(waiting)
    assert (status, "in the queue: BeginTime" in said) == (75, True)
    assert job.listed()["state"] == "cancelled"


@pytest.mark.slow
def test_a_plain_scancel_leaves_time_to_save_too(job: Job):
    job.does('until_asked; sleep 2; verdict 75 "stopped after step 3, and saved"; exit 75')
    running = job.start()
    job.until_up()
    assert job.cluster.slurm("scancel", job.id).returncode == 0
    status, said = ended(running)
    assert job.cluster.show(job.id)["JobState"] == "CANCELLED"
    assert (status, "stopped after step 3, and saved" in said) == (75, True)


# Saves at its first attempt, and ends at its second one.
TWICE = """
if [ "${SLURM_RESTART_COUNT:-0}" = 0 ]; then
  until_asked; mkdir -p "$here/run/checkpoints"; touch "$here/run/checkpoints/COMMITTED"; verdict 75 saved; exit 75
fi
say "again"; verdict 0
"""


@pytest.mark.slow
def test_slurms_warning_puts_the_job_back_into_the_queue_and_it_goes_on(job: Job):
    job.does(TWICE)
    running = job.start()
    job.until_up()
    job.ask("USR1")
    status, said = ended(running)
    assert status == 0, said
    assert {"node 0 of 2: again", "node 1 of 2: again"} <= set(said.splitlines()), "the log goes on with the attempt"
    assert "the job goes back into the queue" in said
    assert (job.cluster.show(job.id)["Restarts"], job.listed()["state"]) == ("1", "complete")


@pytest.mark.slow
def test_what_an_earlier_attempt_has_said_at_its_end_does_not_count(job: Job):
    job.does(TWICE.replace('say "again"; verdict 0', "kill -KILL $$"))
    running = job.start()
    job.until_up()
    job.ask("USR1")
    status, said = ended(running)
    assert (status, "a node ended without a word" in said) == (1, True)


def test_without_requeue_slurms_warning_ends_the_job_as_interrupted(job: Job):
    job.does(TWICE, requeue=False)
    running = job.start()
    job.until_up()
    job.ask("USR1")
    assert ended(running)[0] == 75
    assert job.listed()["state"] == "interrupted"
    assert job.cluster.show(job.id)["Restarts"] == "0"


@pytest.mark.slow
def test_a_job_that_is_cancelled_while_it_saves_for_its_limit_is_not_put_back(job: Job):
    job.does("until_asked; slowly 8; verdict 75 saved; exit 75")
    running = job.start()
    job.until_up()
    job.ask("USR1")
    time.sleep(1)
    assert job.cluster.velocity("cancel", job.place.name).returncode == 0
    assert ended(running)[0] == 75
    assert job.cluster.show(job.id)["Restarts"] == "0"


@pytest.mark.slow
def test_a_job_that_fails_while_it_stops_is_not_put_back(job: Job):
    job.does('until_asked; verdict 1 "the disk is full"; exit 1')
    running = job.start()
    job.until_up()
    job.ask("USR1")
    status, said = ended(running)
    assert (status, "the disk is full" in said) == (1, True)
    assert job.cluster.show(job.id)["Restarts"] == "0"


@pytest.mark.slow
def test_a_job_that_saves_nothing_in_two_attempts_is_not_put_back_for_ever(job: Job):
    job.does("until_asked; rm $here/up-$SLURM_NODEID; verdict 75 'stopped before the first step'; exit 75")
    running = job.start()
    job.until_up()
    job.ask("USR1")
    wait_until(lambda: job.cluster.show(job.id).get("Restarts") == "1", "it is back", PATIENCE_SECONDS)
    job.until_up()
    job.ask("USR1")
    status, said = ended(running)
    assert (status, "two attempts, one after the other, came to nothing that could be saved" in said) == (75, True)
    assert job.cluster.show(job.id)["Restarts"] == "1"


@pytest.mark.slow
def test_nodes_that_do_not_hear_the_warning_in_time_are_interrupted(job: Job):
    """As where Python has not begun to listen: the signal kills it."""
    job.does("touch $here/up-$SLURM_NODEID; sleep 100", requeue=False)
    running = job.start()
    job.until_up()
    job.ask("USR1")
    status, said = ended(running)
    assert (status, "stopped before a node could say how far it was" in said) == (75, True)


@pytest.mark.slow
def test_a_job_that_makes_room_for_a_more_urgent_one_goes_on_behind_it(job: Job):
    job.does(TWICE)
    running = job.start()
    job.until_up()
    urgent = job.cluster.slurm(
        "sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--ntasks-per-node=2", "--output=/dev/null",
        "--wrap", "sleep 3",
    )  # fmt: skip
    assert urgent.returncode == 0, urgent.stderr
    status, said = ended(running, 300)
    assert status == 0, said
    assert job.cluster.show(job.id)["Restarts"] == "1"


@pytest.mark.slow
def test_a_job_that_was_killed_at_its_limit_says_so(job: Job):
    job.does("trap '' USR1 TERM; touch $here/up-$SLURM_NODEID; sleep 1000 & wait; wait; sleep 1000")
    running = job.start()
    job.until_up()
    job.cluster.slurm("scontrol", "update", f"JobId={job.id}", "TimeLimit=1")
    status, said = ended(running, 300)
    # Slurm kills nodes and script together; on a slow machine the script may still see that its nodes are gone
    words = ("the time was up before it had saved", "stopped before a node could say how far it was")
    assert status == 75 and any(one in said for one in words), said
    assert job.listed()["state"] == "interrupted"


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_alone_and_says_how_to_come_back(job: Job):
    job.does("until_asked; verdict 0")
    running = job.start()
    job.until_up()
    running.send_signal(signal.SIGINT)
    status, said = ended(running)
    assert status == 130
    assert f"velocity logs {job.place.name} follows it" in said
    assert job.listed()["state"] == "running"
    job.ask("USR1")
    back = job.cluster.velocity("logs", job.place.name)
    assert back.returncode == 0, back.stderr
