"""The nodes of a job, seen from one of them: what they agree on, and what they do together. It knows no task.

Every node runs the same lines of `run.py`, in the same order; an error on one of them is an error on all, and says
where it was.
"""

from __future__ import annotations

import contextlib
import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from velocity.distributed import failure, pulse
from velocity.distributed.failure import Failure
from velocity.distributed.meeting import ABORTED, Aborted, LostHost, Meeting, interface_towards
from velocity.errors import InterruptedRun, JobError, MemoryFull, Problem, UserError, VelocityError, from_system
from velocity.files import make_private
from velocity.launch import local
from velocity.launch.place import Place
from velocity.process import HOST

Result = TypeVar("Result")
KINDS: Mapping[str, type[VelocityError]] = {
    kind.__name__: kind for kind in (UserError, JobError, MemoryFull, InterruptedRun)
}
GRACE_SECONDS = 5.0  # for the ranks of other nodes to see by themselves that one is gone
STOPPING_SECONDS = 60.0  # for the ranks of other nodes to stop once those of one have


class Work(NamedTuple):
    """What a node starts: a module of ranks on a run folder."""

    module: str
    folder: Path
    failures: Path
    processes: int  # on all nodes together
    added: Mapping[str, str]  # to the environment


class Crew(Protocol):
    """The nodes of a job."""

    count: int
    first: bool
    private: bool  # the nodes share no disk: each writes a run folder of its own

    def each(self, work: Callable[[], Result]) -> Result:
        """Our own result, once every node has one; the first error of any node, on all of them."""
        ...

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What the first node's work gives (plain values), or the error that it raises, on every node."""
        ...

    def same(self, what: str, value: Any) -> None:
        """Nothing where the value (plain) is the same on every node; else UserError, which names `what` and a host."""
        ...

    def look_at(self, folder: Path) -> None:
        """`private` says whether the first node's folder is ours, too."""
        ...

    def run(self, work: Work) -> local.Ended:
        """The ranks of all nodes have ended; the failures of all lie in the first node's folder."""
        ...


class Alone:
    """A job on one machine."""

    count, first, private = 1, True, False

    def each(self, work: Callable[[], Result]) -> Result:
        """Its result."""
        return work()

    def from_first(self, work: Callable[[], Any]) -> Any:
        """Its result."""
        return work()

    def same(self, what: str, value: Any) -> None:
        """Nothing."""

    def look_at(self, folder: Path) -> None:
        """It is ours."""

    def run(self, work: Work) -> local.Ended:
        """The ranks have ended."""
        return local.run(local.render(work.module, work.folder, work.failures, work.processes), work.added)


class Nodes:
    """A job on several machines, which meet at the first one."""

    def __init__(self, place: Place, meeting: Meeting) -> None:
        self.place, self.meeting = place, meeting
        self.count, self.first, self.private = len(place.hosts), place.first, False
        self.heard = False  # the error that ends us is one that the first node has, too
        self._calls = 0
        self._stopped_at: float | None = None  # when another node's ranks were seen to have stopped in good order

    def each(self, work: Callable[[], Result]) -> Result:
        """Our own result, once every node has one; the first error of any node, on all of them."""
        said, results = "", []
        try:
            results.append(work())
        except VelocityError as error:
            said = _written(error, self.place.host)
        except OSError as error:
            said = _written(from_system(error), self.place.host)
        for text in self._gathered(said):
            if text:
                raise self._shared(text)
        return results[0]

    def from_first(self, work: Callable[[], Any]) -> Any:
        """What the first node's work gives (plain values), or the error that it raises, on every node."""
        self._calls += 1
        name = f"{self._calls} from the first"
        if not self.first:
            said = json.loads(self._heard(lambda: self.meeting.from_first(name, None)))
            if "error" in said:
                raise self._shared(said["error"])
            return said["value"]
        try:
            value = work()
        except (VelocityError, OSError) as caught:
            error = from_system(caught) if isinstance(caught, OSError) else caught
            self.meeting.from_first(name, json.dumps({"error": _written(error)}))
            raise error from None
        self.meeting.from_first(name, json.dumps({"value": value}))
        return value

    def same(self, what: str, value: Any) -> None:
        """Nothing where the value (plain) is the same on every node; else UserError, which names `what` and a host."""
        said = self._gathered(json.dumps(value))
        other = next((index for index, one in enumerate(said) if one != said[0]), None)
        if other is not None:
            ours, theirs = (_short(said[index]) for index in (0, other))
            names = f"{self.place.hosts[0]} has {ours}, {self.place.hosts[other]} has {theirs}"
            raise UserError(f"{what} differs between the nodes: {names}", "launch", f"make {what} the same everywhere")

    def look_at(self, folder: Path) -> None:
        """`private` says whether the first node's folder is ours, too."""
        mark = self.from_first(lambda: _marked(folder))
        sees = [one == "true" for one in self._gathered(json.dumps(_sees(folder / mark)))]
        if self.first:
            (folder / mark).unlink(missing_ok=True)
        self.private = not all(sees)
        if self.private and any(sees[1:]):
            lacks = self.place.hosts[sees.index(False)]
            raise UserError(f"{lacks} does not see {folder}, which other nodes share", "output", "share it with all")
        if self.private and not self.first:
            make_private(folder)

    def run(self, work: Work) -> local.Ended:
        """The ranks of all nodes have ended; the failures of all lie in the first node's folder."""
        address = self.from_first(lambda: f"{self.place.hosts[0]}:{local.free_port()}")
        self._calls += 1
        name, self._stopped_at = str(self._calls), None
        command = local.render(
            work.module, work.folder, work.failures, work.processes // self.count,
            local.Among(self.place.index, self.count, address),
        )  # fmt: skip
        added = {**work.added, **self._environment()}
        self.meeting.says = lambda: self._doing(work.failures)
        ended = local.run(command, added, over=lambda: self._is_over(name, work), grace_seconds=GRACE_SECONDS)
        if ended.status:
            self._raise(f"{name} {'stopped' if ended.status == InterruptedRun.exit_status else 'failed'}")
        self.meeting.says = lambda: ""
        self._clear(work.failures)
        return self._together(ended, work)

    def _environment(self) -> dict[str, str]:
        """What ranks know of their node: its name, its network interface, whether its disk is its own."""
        added = {HOST: self.place.host}
        towards = interface_towards(self.place.hosts[1 if self.first else 0])
        if towards is not None:
            added |= {name: towards for name in local.INTERFACES if not local.is_set(name)}
        return {**added, local.PRIVATE: "1"} if self.private else added

    def _is_over(self, name: str, work: Work) -> bool:
        """True where the ranks of another node have failed, or stopped long ago, or the node is lost.

        Our folder says what the ranks of other disks are doing.
        """
        if self.private:
            self._put_down(work.failures)
        raised = self.meeting.news.get("flags", ())
        if f"{name} stopped" in raised:
            self._stopped_at = self._stopped_at or time.monotonic()
        late = self._stopped_at is not None and time.monotonic() - self._stopped_at > STOPPING_SECONDS
        return late or f"{name} failed" in raised or ABORTED in raised or self.meeting.lost is not None

    def _raise(self, flag: str) -> None:
        try:
            self.meeting.raise_flag(flag)
        except LostHost:
            return  # said in _together

    def _doing(self, failures: Path) -> str:
        """What our ranks are doing, for the watchdogs of nodes that do not see our disk."""
        if not self.private:
            return ""
        said = [pulse.read(file) for file in sorted(failures.glob("doing-*.json"))]
        return json.dumps([one for one in said if one and one["host"] == self.place.host])

    def _put_down(self, failures: Path) -> None:
        for index, text in enumerate(self.meeting.news.get("told", ())):
            if index != self.place.index and text:
                for one in json.loads(text):
                    with contextlib.suppress(OSError):  # our ranks have ended well, and the folder with them
                        pulse.doing_file(failures, one["rank"]).write_text(json.dumps(one))

    def _clear(self, failures: Path) -> None:
        """Nothing lies in our folder of what ranks of other disks were doing."""
        for file in failures.glob("doing-*.json") if self.private else ():
            if (pulse.read(file) or {}).get("host") != self.place.host:
                file.unlink(missing_ok=True)

    def _together(self, ended: local.Ended, work: Work) -> local.Ended:
        """How it ended on all nodes: the first status that is not 0, and whether any was asked to stop."""
        found = failure.found(work.failures) if self.private else []
        said = self._gathered(json.dumps({**ended._asdict(), "failures": found}), without_lost=True)
        heard = [None if one is None else json.loads(one) for one in said]
        if self.first:
            self._note(heard, work)
        statuses = [one["status"] for one in heard if one is not None]
        # one that we killed because another failed says nothing of its own
        status = next((one for one in statuses if one > 0), next(filter(None, statuses), int(None in heard)))
        return local.Ended(status, any(one["asked"] for one in heard if one is not None))

    def _note(self, heard: Sequence[Mapping[str, Any] | None], work: Work) -> None:
        """What ranks of other disks said of their failures, and the host that was lost, lie in our folder."""
        for index, one in enumerate(heard):
            if index and one is not None:
                for said in one["failures"]:
                    failure.put(work.failures, said)
        lost = self.meeting.lost
        if lost is not None:
            rank = lost.index * (work.processes // self.count)
            what = Failure(str(lost), kind=LostHost.__name__, killed=True)
            failure.record(work.failures, rank, what, {"host": self.place.hosts[lost.index]})

    def _gathered(self, text: str, *, without_lost: bool = False) -> list[Any]:
        self._calls += 1
        name = f"{self._calls} of each"
        return self._heard(lambda: self.meeting.gather(name, text, without_lost=without_lost))

    def _heard(self, ask: Callable[[], Result]) -> Result:
        try:
            return ask()
        except Aborted as aborted:
            raise self._shared(str(aborted)) from None

    def _shared(self, text: str) -> VelocityError:
        """The error of one node, which ends all of them."""
        self.heard = not self.first
        return _read(text)

    def give_up(self, error: VelocityError) -> None:
        """The other nodes hear why we do, where they wait for us."""
        self.meeting.abort(_written(error, self.place.host))


def _written(error: VelocityError, host: str = "") -> str:
    """The error as text; with a host, it says that it was there."""
    problems = [replace(one, where=", ".join(filter(None, [one.where, host]))) for one in error.problems]
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KINDS or kind is VelocityError)
    facts = {"kind": kind, "status": error.exit_status, "trace": error.trace}
    return json.dumps({**facts, "problems": [asdict(one) for one in problems]})


def _read(text: str) -> VelocityError:
    said = json.loads(text)
    error = KINDS.get(said["kind"], JobError)([Problem(**one) for one in said["problems"]])
    error.exit_status, error.trace = said["status"], said["trace"]
    return error


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}…"


def _marked(folder: Path) -> str:
    """A hidden file that only who shares the folder sees; its name."""
    name = f".met-{uuid.uuid4().hex}"
    make_private(folder)
    (folder / name).touch()
    return name


def _sees(file: Path) -> bool:
    """True where the file is there; a network's file system may tell it only after seconds."""
    for _ in range(15):
        if file.parent.is_dir() and file.name in {one.name for one in file.parent.iterdir()}:
            return True
        time.sleep(0.2)
    return False
