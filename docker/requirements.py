"""Prints what a pyproject.toml depends on, with some of its extras, a requirement a line. It installs nothing."""

from __future__ import annotations

import sys

import tomllib

with open(sys.argv[1], "rb") as stream:
    project = tomllib.load(stream)["project"]
extras = [name for name in sys.argv[2].split(",") if name]
print(*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name]), sep="\n")
