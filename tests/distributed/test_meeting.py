"""Nodes that meet, in threads of one process: what they hear of each other, and of who is gone."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from velocity.distributed import meeting as module
from velocity.distributed.meeting import Aborted, LostHost, Meeting, interface_towards
from velocity.errors import JobError, UserError
from velocity.launch.local import free_port

HOSTS = ("localhost", "127.0.0.1", "127.0.0.2")


@pytest.fixture(name="meet")
def _meet(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[Meeting]]]:
    """Meetings of so many nodes; they are over at the end."""
    monkeypatch.setattr(module, "LEAVE_SECONDS", 1.0)
    made: list[Meeting] = []

    def begin(nodes: int, port: int = 0, **wishes: Any) -> list[Meeting]:
        port = port or free_port()
        with ThreadPoolExecutor(nodes) as threads:
            begun = [threads.submit(Meeting, HOSTS[:nodes], index, port, **wishes) for index in range(nodes)]
            made.extend(one.result() for one in begun)
        return made[-nodes:]

    yield begin
    with ThreadPoolExecutor(max(1, len(made))) as threads:
        list(threads.map(lambda one: one.leave(), made))
    left = [one.name for one in threading.enumerate() if one.name in ("beats", "meeting")]
    deadline = time.monotonic() + 15
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left = [one.name for one in threading.enumerate() if one.name in ("beats", "meeting")]
    assert not left


def on_all(nodes: list[Meeting], work: Callable[[Meeting], Any]) -> list[Any]:
    """What the work gives on each of them, at the same time."""
    with ThreadPoolExecutor(len(nodes)) as threads:
        return [one.result() for one in [threads.submit(work, node) for node in nodes]]


def test_every_node_hears_what_each_says_in_the_order_of_the_hosts(meet: Callable[..., list[Meeting]]):
    heard = on_all(meet(3), lambda node: node.gather("name", f"I am {node.index}"))
    assert heard == [["I am 0", "I am 1", "I am 2"]] * 3


def test_what_the_first_says_is_heard_by_all(meet: Callable[..., list[Meeting]]):
    heard = on_all(meet(3), lambda node: node.from_first("word", None if node.index else "go"))
    assert heard == ["go"] * 3


def test_a_node_that_gives_up_is_heard_by_those_who_wait_for_it(meet: Callable[..., list[Meeting]]):
    first, second = meet(2)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(first.gather, "result", "mine")
        second.abort("my disk is full")
        with pytest.raises(Aborted, match="my disk is full"):
            waits.result(timeout=10)


def test_what_was_said_before_somebody_gave_up_is_heard_all_the_same(meet: Callable[..., list[Meeting]]):
    first, second = meet(2)
    first.from_first("verdict", "it failed")
    first.abort("it failed, on this host")
    assert second.from_first("verdict", None) == "it failed"


def test_a_flag_and_what_beats_tell_reach_every_node_with_the_next_beats(meet: Callable[..., list[Meeting]]):
    first, second = meet(2)
    second.says = lambda: "learning"
    second.raise_flag("over")
    deadline = time.monotonic() + 10
    while "over" not in first.news.get("flags", ()) or first.news["told"][1] != "learning":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_whose_beats_stop_is_lost_on_all_other_nodes(meet: Callable[..., list[Meeting]], monkeypatch: Any):
    monkeypatch.setattr(module, "SILENT_SECONDS", 3.0)
    first, second, third = meet(3)
    second._over.set()
    for node in (first, third):
        with pytest.raises(LostHost, match=r"host 127\.0\.0\.1 gave no sign for 3 s") as caught:
            node.gather("result", "mine")
        assert caught.value.index == 1
    assert on_all([first, third], lambda node: node.gather("end", "x", without_lost=True)) == [["x", None, "x"]] * 2


def test_where_the_first_is_gone_the_others_say_so(meet: Callable[..., list[Meeting]], monkeypatch: Any):
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.0)
    first, second = meet(2)
    first._close()
    with pytest.raises(LostHost, match="host localhost gave no sign"):
        second.gather("result", "mine")


def test_a_host_that_does_not_come_is_named(meet: Callable[..., list[Meeting]]):
    with pytest.raises(JobError, match=r"no sign of 127\.0\.0\.1"):
        Meeting(HOSTS[:2], 0, free_port(), patience_seconds=1)
    with pytest.raises(JobError, match="no sign of localhost"):
        Meeting(HOSTS[:2], 1, free_port(), patience_seconds=1)


def test_a_name_without_an_address_is_named(monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: object) -> None:
        raise socket.gaierror("not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(JobError, match=r"the name gpu-1\.cluster, of the first host, has no address"):
        Meeting(("gpu-1.cluster", "gpu-2.cluster"), 1, free_port(), patience_seconds=1)


def test_a_port_that_is_taken_is_the_users_to_free():
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(UserError, match="the nodes cannot meet on port") as caught:
            Meeting(HOSTS[:2], 0, taken.getsockname()[1], patience_seconds=1)
    assert "launch.port" in str(caught.value)


def test_the_interface_towards_this_machine_is_the_one_that_loops_back():
    assert interface_towards("127.0.0.1") == "lo"
