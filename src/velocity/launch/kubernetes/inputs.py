"""Whether what a job reads and writes is where its pods are. It looks at this machine's files, and asks no cluster."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from velocity.config.job import Job
from velocity.config.kubernetes import KubernetesConfig
from velocity.config.places import HUB_ID, places_of
from velocity.errors import Problem, UserError

FILE_NAME = re.compile(r"\.[A-Za-z]\w{0,7}$")  # chats.jsonl is no data set of the hub


def check_inputs(jobs: Sequence[Job]) -> None:
    """Nothing, or UserError with every path that leads nowhere in the pods."""
    problems = [problem for number, job in enumerate(jobs) for problem in _problems(job, jobs[:number])]
    if problems:
        raise UserError(problems)


def _problems(job: Job, earlier: Sequence[Job]) -> Iterator[Problem]:
    launch: KubernetesConfig = job.launch  # type: ignore[assignment]
    if launch.claim is not None:
        read = [(place.key, place.path) for place in places_of(job)]
        for key, path in [*read, ("output", job.output)]:
            if not _inside(path, launch.mount):
                what = f"{key}: {path} is on no disk of the pods; launch.claim is mounted at {launch.mount}"
                yield Problem(what, key, "give a path relative to that, or an address such as s3://…")
        return
    mirror: str | None = getattr(getattr(job, "checkpoint", None), "mirror", None)
    if mirror is None or "://" not in mirror:
        what = "the pods share no disk: without launch.claim the run is kept in checkpoint.mirror, and only there"
        yield Problem(what, "checkpoint.mirror", "give it an address such as s3://bucket/runs/sft, or set launch.claim")
    outputs = {one.output for one in earlier}
    for place in places_of(job):
        made, fix = "is no address and no hub id", "set launch.claim, or upload it and give its address"
        if place.path in outputs:
            made = "is the output of an earlier job"
        elif place.kind in ("file", "folder"):
            made, fix = f"is a {place.kind}, which is read from a disk", "set launch.claim"
        elif _is_remote(place.path):
            continue
        what = f"{place.key}: {place.path} {made}, and without launch.claim the pods have no disk that holds it"
        yield Problem(what, place.key, fix)


def _inside(path: str, mount: str) -> bool:
    """True for an address, a hub id, and what lies under the mount."""
    if "://" in path and not path.startswith("file://"):
        return True
    joined = posixpath.normpath(posixpath.join(mount, path.removeprefix("file://")))
    return not path.startswith("~") and PurePosixPath(joined).is_relative_to(mount)


def _is_remote(path: str) -> bool:
    """True for an address, or for what can be an id of the hub and is nothing here."""
    if "://" in path:
        return not path.startswith("file://")
    named = path.startswith((".", "/", "~")) or FILE_NAME.search(path) or not HUB_ID.fullmatch(path)
    return not named and not Path(path).exists()
