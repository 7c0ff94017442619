"""One node of a submitted job: it finds its place, meets the others, runs the jobs with them, and says how it went."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from velocity.distributed.meeting import Meeting
from velocity.errors import VelocityError, shown
from velocity.files import write_atomically
from velocity.launch.place import Place, find_place, verdict_file
from velocity.launch.sagemaker import node as sagemaker
from velocity.secrets import scrub
from velocity.start.crew import Nodes
from velocity.start.families import AnyLoaded
from velocity.start.run import run_all
from velocity.terminal import say


class Around(Protocol):
    """What a target's nodes do beside their work."""

    def begin(self) -> None:
        """Before all else."""
        ...

    def leave(self, error: VelocityError) -> None:
        """The target finds why it ended."""
        ...


class SaidElsewhere(Exception):
    """What ends this node is an error that the first one says: a log of all of them is to have it once."""

    def __init__(self, error: VelocityError, place: Place) -> None:
        self.error = error
        what = error.problems[0].what.splitlines()[0]
        super().__init__(f"{place.host} ends with {place.hosts[0]}, which says why: {what}")


AROUND: Mapping[str, Around] = {"sagemaker": sagemaker}


def run_here(target: str, load: Callable[[], Sequence[AnyLoaded]], *, started: float) -> None:
    """The jobs are done, on all nodes; else the error that says why not, or its exit status where another node says it.

    The verdict is the same on each of them. `load` reads the job files; `started` is in seconds since 1970.
    """
    around, verdict = AROUND.get(target), verdict_file()
    try:
        if around is not None:
            around.begin()
        _run(target, load, started)
    except BaseException as caught:
        error = caught.error if isinstance(caught, SaidElsewhere) else shown(caught)
        _tell(verdict, error)
        if around is not None:
            around.leave(error)
        if isinstance(caught, SaidElsewhere):
            say(str(caught))
            raise SystemExit(error.exit_status) from caught
        raise error from caught
    _tell(verdict, None)


def _run(target: str, load: Callable[[], Sequence[AnyLoaded]], started: float) -> None:
    place = find_place(target)
    if len(place.hosts) == 1:
        run_all(load(), fresh=False, started=started)
        return
    meeting = Meeting(place.hosts, place.index, place.port)
    crew = Nodes(place, meeting)
    try:
        run_all(load(), fresh=False, started=started, crew=crew)
    except BaseException as caught:
        error = shown(caught)
        crew.give_up(error)
        if crew.heard:
            raise SaidElsewhere(error, place) from caught
        raise
    finally:
        meeting.leave()


def _tell(verdict: Path | None, error: VelocityError | None) -> None:
    """The target finds how it went, where it wants to."""
    if verdict is not None:
        said = {"exit_status": error.exit_status if error else 0, "why": str(error) if error else ""}
        text = json.dumps(said) + "\n"
        # a file that is there is Kubernetes', bound into the container: nothing can take its place
        verdict.write_text(scrub(text)) if verdict.exists() else write_atomically(verdict, text)
