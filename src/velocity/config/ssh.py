"""A launch section for hosts that ssh reaches."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from velocity.config.target import LaunchConfig, Names

Port = Annotated[int, Field(ge=1024, le=65535)]


class SshConfig(LaunchConfig):
    """Hosts that ssh reaches, with the same Python and the same folder on each."""

    kind: Literal["ssh"] = "ssh"
    hosts: Names = Field((), description="their names; ranks are counted in this order")
    hostfile: str | None = Field(None, description="or a file with a host a line, as DeepSpeed's and MPI's")
    config: str | None = Field(None, description="a configuration file for ssh, as its -F")
    folder: str | None = Field(None, description="where the job runs on each host, seen from home; here, if left out")
    python: str | None = Field(None, description="the Python on each host that has Velocity; ours, if left out")
    port: Port = Field(29400, description="of the first host, where the others come to")

    @property
    def names(self) -> tuple[str, ...]:
        """The hosts, by name, of the file or of the list."""
        if self.hostfile is None:
            return self.hosts
        lines = Path(self.hostfile).expanduser().read_text(encoding="utf-8").splitlines()
        words = (line.partition("#")[0].split() for line in lines)
        return tuple(first for first, *_ in filter(None, words))

    @property
    def node_count(self) -> int:
        """On how many machines the job runs."""
        return len(self.names)

    @model_validator(mode="after")
    def _names_hosts(self) -> SshConfig:
        if bool(self.hosts) == (self.hostfile is not None):
            raise ValueError("kind ssh needs either hosts or hostfile; e.g. hosts: [gpu-1, gpu-2]")
        try:
            names = self.names
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"hostfile cannot be read: {error}; give a file with a host a line") from None
        if not names:
            raise ValueError("hostfile names no host; give a file with a host a line")
        addresses = [name.rpartition("@")[2] for name in names]
        if twice := sorted({name for name in addresses if addresses.count(name) > 1}):
            raise ValueError(f"the host {twice[0]} is named twice; ranks of one host share one node")
        if wrong := [name for name in names if not re.fullmatch(r"[\w@.:\[\]-]+", name) or name.startswith("-")]:
            raise ValueError(f"{wrong[0]!r} is no name of a host; e.g. gpu-1, or user@gpu-1")
        return self
