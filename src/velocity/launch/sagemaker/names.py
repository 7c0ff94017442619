"""Where things of a job lie in the account and in the container. Pure: names that nobody was asked for are blanks."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

CHANNELS = "/opt/ml/input/data"
JOB_CHANNEL = "job"
# SageMaker's large disk is mounted at a few paths; of those, this one is for scratch, and neither sent nor restored.
SCRATCH = "/tmp/velocity"
CHECKPOINTS = "/opt/ml/checkpoints"  # this one is sent to S3, and restored from there, by SageMaker
NAME_LETTERS = 30
GLOB = re.compile(r"[*?\[]")
BLANK = re.compile(r"<[^<>]*>")


@dataclass(frozen=True)
class Names:
    """What the account and the inputs decide. As it comes it holds blanks: words for what submitting will fill in."""

    bucket: str = "<the account's default bucket>"
    role: str = "<launch.role>"
    image: str = "<image of velocity image push>"
    digests: Mapping[str, str] = field(default_factory=dict)  # channel → hash of what is uploaded for it
    runs: Mapping[str, int] = field(default_factory=dict)  # key of an output → number of its run

    def input(self, prefix: str, channel: str) -> str:
        """The folder in S3 whose content a channel shows, where we upload it: it never changes."""
        return f"{self.inputs(prefix)}/{self.digests.get(channel, f'<hash of {channel}>')}"

    def inputs(self, prefix: str) -> str:
        """The folder in S3 of all that was uploaded."""
        return f"s3://{self.bucket}/{prefix}/inputs"

    def jobs(self, prefix: str) -> str:
        """The folder in S3 of what belongs to one training job, by the jobs' names."""
        return f"s3://{self.bucket}/{prefix}/jobs"

    def mirror(self, prefix: str, key: str) -> str:
        """The folder in S3 from which a run goes on. `--fresh` begins one with the next number."""
        return f"s3://{self.bucket}/{prefix}/runs/{key}/{self.runs.get(key, '<number of the run>')}"


def key_of(path: str) -> str:
    """A name of a folder, file or address, the same whoever names it: its last part, and a hash of where it is."""
    place = path if "://" in path else str(Path(path).expanduser().absolute())
    fixed = [part for part in place.split("/") if part and not GLOB.search(part)]
    words = re.sub(r"[^A-Za-z0-9._-]+", "-", fixed[-1] if fixed else "").strip("-.")[:NAME_LETTERS] or "files"
    return f"{words}-{sha256(place.encode()).hexdigest()[:8]}"


def local_output(output: str) -> str:
    """The output folder in the container."""
    return f"{SCRATCH}/runs/{key_of(output)}"
