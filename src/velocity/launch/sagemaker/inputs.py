"""What a job reads becomes channels, and its job file names what they show in the container. Pure: nothing is read.

What lies where we are, or in S3, is a channel; a hub's model or data set, and what any other address names, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import yaml

from velocity.config.job import Job
from velocity.config.places import HUB_ID, Place, places_of, put
from velocity.config.sagemaker import SageMakerConfig
from velocity.errors import UserError
from velocity.launch.sagemaker.names import (
    CHANNELS,
    CHECKPOINTS,
    GLOB,
    JOB_CHANNEL,
    SCRATCH,
    Names,
    key_of,
    local_output,
)

Look = Callable[[str], Literal["file", "folder"] | None]  # what lies at a path here
Mode = Literal["File", "FastFile"]

# Read from the first byte to the last: they need not be here before the job starts.
SEQUENTIAL = {".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".md", ".markdown"}
COMPRESSED = {".gz", ".bz2", ".xz", ".zst", ".zip"}
HEAD = "# What runs on SageMaker: the job, its inputs as channels, its output on the machine's disk, with a mirror.\n"


@dataclass(frozen=True)
class Channel:
    """An input that SageMaker shows the container as a folder."""

    name: str
    mode: Mode
    where: str  # the job's key that names it
    url: str = ""  # in S3, where it lies there already
    path: str = ""  # else here: a file, a folder, a glob
    weights: bool = False  # a model's folder: of it goes what a model is loaded from


@dataclass(frozen=True)
class Plan:
    """All jobs of a submission as they run there."""

    channels: Sequence[Channel]
    files: Sequence[dict[str, Any]]  # the jobs as plain values, without a mirror
    attached: dict[str, str] = field(default_factory=dict)  # name in the channel of job files → file here


def look(path: str) -> Literal["file", "folder"] | None:
    """What lies at a path here."""
    found = Path(path).expanduser()
    return "folder" if found.is_dir() else "file" if found.is_file() else None


def plan_inputs(jobs: Sequence[Job], at: Look = look) -> Plan:
    """The jobs as they run there; UserError for an input that does not get there."""
    found = _Channels(at, isolated=launch_of(jobs[0]).isolated)
    files = [found.rewritten(job, jobs[:number]) for number, job in enumerate(jobs)]
    return Plan(tuple(found.channels.values()), files, found.attached)


def launch_of(job: Job) -> SageMakerConfig:
    """Its launch section."""
    assert isinstance(job.launch, SageMakerConfig), "no other job comes here"
    return job.launch


def file_texts(plan: Plan, jobs: Sequence[Job], file_names: Sequence[str], names: Names) -> dict[str, str]:
    """The job files that run there, by name."""
    texts = {}
    for name, job, values in zip(file_names, jobs, plan.files, strict=True):
        mirrored = dict(values)
        if "checkpoint" in type(job).model_fields:
            checkpoint = values.get("checkpoint") or {}
            mirrored["checkpoint"] = {**checkpoint, "mirror": checkpoint.get("mirror") or _mirror(job, jobs, names)}
        text: str = yaml.safe_dump(mirrored, sort_keys=False, allow_unicode=True, width=120)
        texts[name] = HEAD + text
    return texts


def mirror_of(job: Job, jobs: Sequence[Job], names: Names) -> str:
    """Where in S3 the run lies of one of the jobs."""
    named = getattr(getattr(job, "checkpoint", None), "mirror", None)
    if launch_of(job).isolated:
        return f"{checkpoints_of(jobs, names)}/{key_of(job.output)}"
    return str(named or names.mirror(launch_of(job).prefix, key_of(job.output)))


def checkpoints_of(jobs: Sequence[Job], names: Names) -> str:
    """Where in S3 the runs of jobs without a network lie, together."""
    return names.mirror(launch_of(jobs[-1]).prefix, key_of(jobs[-1].output))


def _mirror(job: Job, jobs: Sequence[Job], names: Names) -> str:
    # without a network it is a folder, which SageMaker keeps the same as the one in S3
    return f"{CHECKPOINTS}/{key_of(job.output)}" if launch_of(job).isolated else mirror_of(job, jobs, names)


class _Channels:
    """Collects the channels of several jobs: what two of them read is one."""

    def __init__(self, at: Look, *, isolated: bool) -> None:
        self.at, self.isolated = at, isolated
        self.channels: dict[str, Channel] = {}
        self.attached: dict[str, str] = {}

    def rewritten(self, job: Job, earlier: Sequence[Job]) -> dict[str, Any]:
        """The job as plain values; what it reads lies in channels."""
        values: dict[str, Any] = job.model_dump(mode="json", exclude_unset=True)
        for place in places_of(job):
            put(values, place, self._there(place, earlier))
        values["data"] = {**values.get("data", {}), "cache": f"{SCRATCH}/cache"}
        values["output"] = local_output(job.output)
        mirror = (values.get("checkpoint") or {}).get("mirror")
        if mirror and "://" not in mirror:
            what = f"checkpoint.mirror={mirror} is a folder, and no machine there has it"
            raise UserError(what, "checkpoint.mirror", "give an s3:// address, or leave it out")
        if mirror and self.isolated:
            what = "checkpoint.mirror does not go with launch.isolated: nothing is reached from there"
            raise UserError(what, "checkpoint.mirror", "leave it out: SageMaker keeps the run in S3")
        return values

    def _there(self, place: Place, earlier: Sequence[Job]) -> str:
        """Where the container finds what lies in that place."""
        if place.kind == "model":
            return self._model(place.path, place.key, earlier)
        if place.kind == "file":
            return self._attach(place.path, place.key)
        return self._folder(place.path, place.key) if place.kind == "folder" else self._data(place.path, place.key)

    def _model(self, path: str, key: str, earlier: Sequence[Job]) -> str:
        for other in earlier:
            if key_of(other.output) == key_of(path):
                return local_output(other.output)
        if path.startswith("s3://"):
            return self._channel(path, Channel("", "File", key, url=path.rstrip("/") + "/"))
        if self.at(path) == "folder":
            return self._channel(path, Channel("", "File", key, path=path, weights=True))
        if path.startswith((".", "/", "~")) or not HUB_ID.fullmatch(path):
            raise UserError(f"no such model folder: {path}", key, "give a folder, an s3:// address, or a hub id")
        return self._from_network(path, key)

    def _folder(self, path: str, key: str) -> str:
        if path.startswith("s3://"):
            return self._channel(path, Channel("", "File", key, url=path.rstrip("/") + "/"))
        if self.at(path) != "folder":
            raise UserError(f"no such folder: {path}", key, "give a folder, or an s3:// address")
        return self._channel(path, Channel("", "File", key, path=path))

    def _data(self, path: str, key: str) -> str:
        path = path.removeprefix("file://")
        if path.startswith("s3://"):
            folder, behind = _split(path)
            one = bool(behind) and not GLOB.search(behind)  # and nothing else of its folder
            url = f"{folder}/{behind}" if one else f"{folder}/"
            return _joined(self._channel(path, Channel("", _mode(path), key, url=url)), behind)
        if "://" in path:
            return self._from_network(path, key)
        kind = self.at(path)
        if kind is not None or GLOB.search(path):
            behind = PurePosixPath(path).name if kind == "file" else "" if kind else _split(path)[1]
            mode: Mode = "File" if kind == "folder" else _mode(path)
            return _joined(self._channel(path, Channel("", mode, key, path=path)), behind)
        if path.count("/") == 1 and HUB_ID.fullmatch(path) and not _ending(path):
            return self._from_network(path, key)
        raise UserError(f"no such file or folder: {path}", key, "check the path; globs and URLs are possible, too")

    def _from_network(self, path: str, key: str) -> str:
        if self.isolated:
            what = f"{path} does not lie in S3 or here, and launch.isolated leaves no way to it"
            raise UserError(what, key, "download it, and name the folder")
        return path

    def _channel(self, path: str, new: Channel) -> str:
        """The folder in the container of a channel that shows this. Its name follows from the path, whoever reads it.

        A run goes on where its job names the same inputs: alone, or as one of a chain.
        """
        name = key_of(path)
        self.channels[name] = replace(new, name=name)
        return f"{CHANNELS}/{name}"

    def _attach(self, path: str, key: str) -> str:
        if self.at(path) != "file":
            raise UserError(f"no such file: {path}", key, "give the path of a file that lies here")
        known = next((name for name, file in self.attached.items() if file == path), None)
        name = known or f"{len(self.attached) + 1}-{PurePosixPath(path).name}"
        self.attached[name] = path
        return f"{CHANNELS}/{JOB_CHANNEL}/{name}"


def _joined(folder: str, behind: str) -> str:
    return f"{folder}/{behind}" if behind else folder


def _split(path: str) -> tuple[str, str]:
    """The folder of a glob or of a file, and what is left of the path; a folder by itself leaves nothing."""
    if not GLOB.search(path) and not _ending(path):
        return path.rstrip("/"), ""
    scheme, separator, rest = path.rpartition("://")
    parts = rest.split("/")
    fixed = next((number for number, part in enumerate(parts) if GLOB.search(part)), len(parts) - 1)
    return f"{scheme}{separator}{'/'.join(parts[:fixed])}", "/".join(parts[fixed:])


def _ending(path: str) -> str:
    """What a file's name ends with, but for how it is compressed; nothing for a folder."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    kept = [suffix for suffix in suffixes if suffix not in COMPRESSED][-1:]
    return kept[0] if kept and kept[0] in SEQUENTIAL | {".parquet"} else ""


def _mode(path: str) -> Mode:
    return "FastFile" if _ending(path) in SEQUENTIAL else "File"
