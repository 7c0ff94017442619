"""How a job on a real Slurm ends, whatever its nodes do. The script is the real one, its nodes do as they are told."""

from __future__ import annotations

import pytest

from tests.slurm_jobs import Job


def test_a_job_whose_nodes_all_end_well_is_complete(job: Job):
    job.does("say hello; verdict 0")
    done = job.run()
    assert done.returncode == 0, done.stderr
    assert {"node 0 of 2: hello", "node 1 of 2: hello"} <= set(done.stderr.splitlines())
    assert (job.listed()["state"], job.listed()["exit_status"]) == ("complete", 0)
    assert job.cluster.show(job.id)["ExitCode"] == "0:0"


@pytest.mark.slow
@pytest.mark.parametrize(("options", "given"), [([], "from here"), (["--export=NONE"], "")])
def test_every_node_has_the_environment_of_the_command_unless_it_may_not_and_what_setup_adds(
    job: Job, monkeypatch: pytest.MonkeyPatch, options: list[str], given: str
):
    monkeypatch.setenv("GIVEN_HERE", "from here")
    job.does('say "${GIVEN_HERE:-}, $SET_UP"; verdict 0', setup="export SET_UP=there\nfalse || true", options=options)
    said = job.run().stderr
    assert {f"node {node} of 2: {given}, there" for node in (0, 1)} <= set(said.splitlines()), said


@pytest.mark.parametrize("status", [1, 2, 3])
def test_a_node_that_fails_gives_the_job_its_exit_status_and_its_reason(job: Job, status: int):
    why = r"the loss is not finite\\n  where: rank 1 on node-2\\n  fix:   look"
    job.does(f'[ "$SLURM_NODEID" = 1 ] || exit 143; verdict {status} "{why}"; exit {status}')
    done = job.run()
    assert done.returncode == status
    problem = "the loss is not finite\n  where: rank 1 on node-2\n  fix:   look\n"
    assert done.stderr.endswith(f"error: {problem}")
    assert job.listed()["why"] == problem.rstrip("\n")
    again = job.cluster.velocity("logs", job.place.name)
    assert (again.returncode, again.stderr.endswith(f"error: {problem}")) == (status, True)


@pytest.mark.slow
def test_a_failure_counts_more_than_the_interruption_that_it_is_to_the_other_nodes(job: Job):
    job.does(
        'if [ "$SLURM_NODEID" = 1 ]; then verdict 1 "the disk is full"; exit 1; else verdict 75 stopped; exit 75; fi'
    )
    done = job.run()
    assert (done.returncode, "the disk is full" in done.stderr) == (1, True)


@pytest.mark.slow
@pytest.mark.parametrize("does", ["exit 2", "kill -KILL $$", '[ "$SLURM_NODEID" = 0 ] || kill -KILL $$; verdict 0'])
def test_a_node_that_ends_without_a_word_fails_the_job(job: Job, does: str):
    job.does(does)
    done = job.run()
    assert done.returncode == 1
    assert "error: a node ended without a word (srun ended with" in done.stderr
    assert f"where: Slurm job {job.id}" in done.stderr


@pytest.mark.slow
def test_a_python_that_the_nodes_do_not_have_is_named(job: Job):
    job.does("true")
    (job.folder / "python").unlink()
    done = job.run()
    assert done.returncode == 1
    assert f"{job.folder}/python: No such file" in done.stderr


@pytest.mark.slow
def test_a_line_of_setup_that_fails_ends_the_job_before_any_node_starts(job: Job):
    job.does("say hello; verdict 0", setup="true\nmodule load no-such-module\ntrue")
    done = job.run()
    assert done.returncode == 1
    assert "module: command not found" in done.stderr
    assert "error: a line of launch.setup failed\n  where: launch.setup, on the first node" in done.stderr
    assert "hello" not in done.stderr
