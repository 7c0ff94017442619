"""Two nodes that agree, in threads of one process: one's error is the error of both, and says where it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from velocity.distributed.meeting import Meeting
from velocity.errors import InterruptedRun, JobError, MemoryFull, UserError
from velocity.launch.local import free_port
from velocity.launch.place import Place
from velocity.start.crew import Nodes, Work, _read, _written

HOSTS = ("localhost", "127.0.0.1")
Both = Callable[[Callable[[Nodes], Any]], list[Any]]


@pytest.fixture(name="both")
def _both() -> Iterator[Both]:
    """Runs the same lines on both nodes: each one's result, or the error that it raised."""
    port = free_port()
    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(Meeting, HOSTS, index, port) for index in range(2)]
        meetings = [one.result() for one in begun]
        crews = [Nodes(Place(HOSTS, index, port), meeting) for index, meeting in enumerate(meetings)]

        def result(crew: Nodes, work: Callable[[Nodes], Any]) -> Any:
            try:
                return work(crew)
            except Exception as error:
                return error

        yield lambda work: list(threads.map(lambda crew: result(crew, work), crews))
        list(threads.map(lambda one: one.leave(), meetings))


def only_on(node: int, error: Exception) -> Callable[[Nodes], Any]:
    def work(crew: Nodes) -> str:
        if crew.place.index == node:
            raise error
        return "well"

    return lambda crew: crew.each(lambda: work(crew))


def test_each_has_its_own_result(both: Both):
    assert both(lambda crew: crew.each(lambda: crew.place.index)) == [0, 1]


@pytest.mark.parametrize("node", [0, 1])
def test_an_error_of_one_node_is_raised_on_both_with_its_host(both: Both, node: int):
    errors = both(only_on(node, UserError("no such file: a.jsonl", "data.train", "give another")))
    assert [type(error) for error in errors] == [UserError, UserError]
    said = f"no such file: a.jsonl\n  where: data.train, {HOSTS[node]}\n  fix:   give another"
    assert [str(error) for error in errors] == [said, said]


@pytest.mark.parametrize("node", [0, 1])
def test_the_first_node_says_an_error_whoever_had_it_and_the_other_one_knows_that(both: Both, node: int):
    both(only_on(node, UserError("no such file: a.jsonl")))
    assert both(lambda crew: crew.heard) == [False, True]


def test_a_full_disk_of_one_node_is_an_error_of_both(both: Both):
    errors = both(only_on(1, OSError(28, "No space left on device", "/data/run")))
    assert [type(error) for error in errors] == [JobError, JobError]
    assert f"where: /data/run, {HOSTS[1]}" in str(errors[0])


def test_what_the_first_node_finds_is_what_both_go_on_with(both: Both):
    assert both(lambda crew: crew.from_first(lambda: crew.place.host)) == [HOSTS[0]] * 2


def test_an_error_that_only_the_first_can_have_is_raised_on_both(both: Both):
    def work() -> None:
        raise InterruptedRun("stopped after step 3")

    errors = both(lambda crew: crew.from_first(work))
    assert [(type(error), error.exit_status) for error in errors] == [(InterruptedRun, 75)] * 2


def test_what_differs_between_the_nodes_is_named_with_both_values(both: Both):
    errors = both(lambda crew: crew.same("the hardware", {"gpus": crew.place.index}))
    assert all(isinstance(error, UserError) for error in errors)
    assert 'localhost has {"gpus": 0}, 127.0.0.1 has {"gpus": 1}' in str(errors[1])
    assert both(lambda crew: crew.same("the hardware", 8)) == [None, None]


def test_a_folder_of_both_is_shared_and_one_of_each_is_private(both: Both, tmp_path: Path):
    def look(folder: Callable[[Nodes], Path]) -> list[Any]:
        both(lambda crew: crew.look_at(folder(crew)))
        return both(lambda crew: crew.private)

    assert look(lambda crew: tmp_path / "run") == [False, False]
    assert look(lambda crew: tmp_path / str(crew.place.index) / "run") == [True, True]
    assert not list(tmp_path.rglob(".met-*"))


def test_who_gives_up_ends_the_wait_of_the_other_with_its_reason(both: Both):
    def work(crew: Nodes) -> Any:
        if crew.first:
            return crew.each(lambda: 1)
        crew.give_up(InterruptedRun("stopped before the first step"))
        return None

    first, _ = both(work)
    assert isinstance(first, InterruptedRun) and HOSTS[1] in str(first)
    assert both(lambda crew: crew.heard) == [False, False], "both had it before anybody could tell them"


def test_an_error_comes_back_as_it_was_sent():
    error = MemoryFull("the host's memory is full", "rank 1", "less")
    error.trace, error.exit_status = "line 3", 1
    back = _read(_written(error))
    assert (type(back), str(back), back.trace, back.exit_status) == (MemoryFull, str(error), "line 3", 1)


def test_ranks_end_where_another_node_has_given_up(both: Both, tmp_path: Path):
    work = Work("a.module", tmp_path, tmp_path / "failures", 2, {})
    both(lambda crew: None if crew.first else crew.give_up(JobError("a defect")))

    def is_over(crew: Nodes) -> bool:
        deadline = time.monotonic() + 10
        while not crew._is_over("1", work) and time.monotonic() < deadline:
            time.sleep(0.1)
        return crew._is_over("1", work)

    assert both(is_over) == [True, True]
