"""One job on two nodes, with one disk or two: the same losses, one cause, and nothing that is lost with a node."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses, velocity
from tests.generating import completions, question_folder, write_generate_job
from tests.making import write_job
from tests.nodes import HOSTS, TwoNodes
from tests.running import prepare_folder
from velocity.checkpoints.commit import MARKER, committed, step_of
from velocity.inference.ledger import Ledger, shard_rows

STEPS, EVERY = 14, 4
ROWS = 192


def job_of(folder: Path, name: str, output: str, launch: dict[str, Any], steps: int = STEPS, **sections: Any) -> Path:
    return write_job(
        folder / f"{name}.yaml",
        output=output,
        optimizer={"kind": "adamw", "learning_rate": 1e-3, "schedule": "constant", "warmup": 0},
        duration={"steps": steps},
        strategy={"zero": 2, "precision": "fp32"},
        batch={"rows": 8, "micro": 2},
        launch=launch,
        **{"checkpoint": {"every": EVERY, "keep": 2}, **sections},
    )


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("nodes"))


@pytest.fixture(name="expected", scope="module")
def _expected(folder: Path) -> list[tuple[int, float, float]]:
    """Of the same job on one machine."""
    job = job_of(folder, "one", str(folder / "one"), {"processes": 2})
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    return losses(folder / "one")


def nodes_of(folder: Path, name: str, *, private: bool, **sections: Any) -> TwoNodes:
    home = folder / name
    home.mkdir()
    output = "run" if private else str(home / "run")
    checkpoint = {"every": EVERY, "keep": 2, **({"mirror": str(home / "mirror")} if private else {})}
    launch = {"kind": "ssh", "hosts": list(HOSTS), **sections.pop("launch", {})}
    job = job_of(folder, name, output, launch, checkpoint=checkpoint, **sections)
    return TwoNodes(home, job, output)


def same(found: list[tuple[int, float, float]], expected: list[tuple[int, float, float]]) -> None:
    assert [step for step, *_ in found] == [step for step, *_ in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)


@pytest.fixture(name="private", scope="module")
def _private(folder: Path, expected: object) -> TwoNodes:
    """Two nodes without a common disk: stopped at one, then the other's disk is wiped, and they go on."""
    nodes = nodes_of(folder, "private", private=True)
    nodes.start("duration.steps=400")
    nodes.do_steps(2)
    nodes.processes[1].send_signal(signal.SIGTERM)  # any node may be asked
    nodes.stopped = nodes.end()  # type: ignore[attr-defined]
    nodes.stopped_said = nodes.said()  # type: ignore[attr-defined]
    nodes.at = max(map(step_of, committed(nodes.run() / "checkpoints")))  # type: ignore[attr-defined]
    shutil.rmtree(nodes.home(0))
    shutil.rmtree(nodes.run(1) / "checkpoints")
    nodes.start(f"duration.steps={max(STEPS, nodes.at)}")  # type: ignore[attr-defined]
    nodes.done = nodes.end()  # type: ignore[attr-defined]
    return nodes


def test_a_stop_of_any_node_saves_and_ends_all_of_them_with_75(private: Any):
    assert private.stopped == [75, 75]
    assert f"stopped after step {private.at}, and saved" in private.stopped_said


def test_wiped_nodes_go_on_from_the_mirror_and_each_has_the_result(private: Any):
    assert private.done == [0, 0], private.said()
    assert (private.run(0) / "model" / "model.safetensors").read_bytes() == (
        private.run(1) / "model" / "model.safetensors"
    ).read_bytes()
    assert private.verdict(1) == {"exit_status": 0, "why": ""}


def test_the_losses_are_those_of_one_machine(private: Any, expected: list[tuple[int, float, float]]):
    same(losses(private.run())[:STEPS], expected)


def test_each_disk_has_the_files_of_its_own_ranks_and_the_mirror_those_of_all(private: Any):
    newest = committed(private.run(0) / "checkpoints")[-1].name
    ranks = {
        place: sorted(file.name[:10] for file in (place / newest).glob("part-*"))
        for place in (private.run(0) / "checkpoints", private.run(1) / "checkpoints", private.folder / "mirror")
    }
    assert list(ranks.values()) == [["part-00000"], ["part-00001"], ["part-00000", "part-00001"]]
    assert all((place / newest / MARKER).is_file() for place in ranks)


def test_nothing_of_another_nodes_failures_is_left(private: Any):
    assert not list(private.run(0).glob("failures/*")) and not list(private.run(1).glob("failures/*"))


@pytest.fixture(name="shared", scope="module")
def _shared(folder: Path, expected: object) -> TwoNodes:
    """Two nodes with one disk; a rank of the second is killed, and the job starts again by itself."""
    nodes = nodes_of(folder, "shared", private=False, launch={"max_restarts": 1})
    nodes.start("duration.steps=400")
    nodes.do_steps(EVERY + 2)
    os.kill(nodes.ranks(1)[0], signal.SIGKILL)
    nodes.wait_for(lambda: "restart 1 of 1" in nodes.said())
    nodes.wait_for(lambda: nodes.ranks(1))
    nodes.do_steps(STEPS)
    os.kill(nodes.ranks(1)[0], signal.SIGKILL)
    nodes.statuses = nodes.end()  # type: ignore[attr-defined]
    return nodes


@pytest.mark.slow
def test_a_lost_rank_of_any_node_is_the_cause_everywhere(shared: Any):
    assert shared.statuses == [1, 1]
    assert shared.verdict(0) == shared.verdict(1)
    what, where, _ = shared.verdict(1)["why"].splitlines()
    assert what == "a process was killed by SIGKILL"
    assert where.startswith(f"  where: rank 1 on {HOSTS[1]}, step ")


@pytest.mark.slow
def test_the_job_started_again_from_the_last_checkpoint_on_both_nodes(
    shared: Any, expected: list[tuple[int, float, float]]
):
    same(losses(shared.run())[:STEPS], expected)


def test_nodes_without_a_common_disk_and_without_a_mirror_are_refused(folder: Path, expected: object):
    nodes = nodes_of(folder, "refused", private=True)
    nodes.start("checkpoint.mirror=null")
    assert nodes.end() == [2, 2]
    assert "the nodes do not share run, and there is no checkpoint.mirror" in nodes.verdict(1)["why"]


def test_what_is_wrong_on_one_node_is_said_with_its_name_by_all(folder: Path, expected: object):
    nodes = nodes_of(folder, "wrong", private=True, data={"train": "here.jsonl"})
    nodes.home(0).mkdir()
    shutil.copy(folder / "train.jsonl", nodes.home(0) / "here.jsonl")
    nodes.start()
    assert nodes.end() == [2, 2]
    assert nodes.verdict(0) == nodes.verdict(1)
    assert "here.jsonl" in nodes.verdict(0)["why"] and HOSTS[1] in nodes.verdict(0)["why"]
    assert nodes.said(0).count("error: ") == 1
    assert "error: " not in nodes.said(1), "a log of both has the error once"
    assert f"{HOSTS[1]} ends with {HOSTS[0]}, which says why: " in nodes.said(1)


@pytest.mark.slow
def test_a_host_that_dies_is_named_and_the_job_ends_on_the_others(folder: Path, expected: object):
    nodes = nodes_of(folder, "dies", private=True)
    nodes.start("duration.steps=4000")
    nodes.do_steps(2)
    for pid in [*nodes.ranks(1), nodes.processes[1].pid]:
        os.kill(pid, signal.SIGKILL)
    assert nodes.end() == [1, -9]
    assert f"host {HOSTS[1]} gave no sign for 30 s" in nodes.verdict(0)["why"]


@pytest.mark.slow
def test_where_the_first_host_dies_the_others_end_too(folder: Path, expected: object):
    nodes = nodes_of(folder, "first-dies", private=True)
    nodes.start("duration.steps=4000")
    nodes.do_steps(2)
    for pid in [*nodes.ranks(0), nodes.processes[0].pid]:
        os.kill(pid, signal.SIGKILL)
    assert nodes.end() == [-9, 1]
    assert f"host {HOSTS[0]} gave no sign for 30 s" in nodes.verdict(1)["why"]


@pytest.fixture(name="rows", scope="module")
def _rows(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Batch inference on two nodes without a common disk: killed, wiped, and gone on with."""
    folder = question_folder(tmp_path_factory.mktemp("rows"), ROWS)
    settings = {
        "generation.max_new_tokens": 16, "batch.rows": 4, "output": "run",
        "launch": {"kind": "ssh", "hosts": list(HOSTS)}, "checkpoint.mirror": str(folder / "mirror"),
    }  # fmt: skip
    nodes: Any = TwoNodes(folder, write_generate_job(folder / "job.yaml", settings), "run")
    nodes.start()
    shards = folder / "mirror" / "shards"
    nodes.wait_for(lambda: len(list(shards.glob("*.jsonl"))) >= 3)
    for pid in [*nodes.ranks(0), *nodes.ranks(1), *(one.pid for one in nodes.processes)]:
        os.kill(pid, signal.SIGKILL)
    nodes.killed = nodes.end()
    nodes.there = len(list(shards.glob("*.jsonl")))
    for node in (0, 1):
        shutil.rmtree(nodes.run(node))
    nodes.start()
    nodes.done = nodes.end()
    return nodes


@pytest.mark.slow
def test_rows_that_wiped_nodes_had_finished_are_not_done_again_and_each_comes_out_once(rows: Any):
    assert (rows.killed, rows.done) == ([-9, -9], [0, 0]), rows.said()
    total = len(Ledger(rows.run().parent, [1] * ROWS).shards)
    assert 3 <= rows.there < total, "there was work left"
    lines = [json.loads(line) for line in (rows.run() / "metrics.jsonl").read_text().splitlines()]
    again = max(line["rows"] for line in lines if "rows" in line)
    assert again <= ROWS - (rows.there - 1) * shard_rows(ROWS)
    found = completions(rows.run())
    assert [line["number"] for line in found] == list(range(ROWS)), "each row once, in order"


@pytest.mark.slow
def test_both_nodes_and_the_mirror_have_the_completions(rows: Any):
    texts = {
        (place / "completions.jsonl").read_bytes() for place in (rows.run(0), rows.run(1), rows.folder / "mirror/run")
    }
    assert len(texts) == 1
    assert not (rows.folder / "mirror" / "shards").exists()
