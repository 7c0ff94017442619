"""The resolved job as a file: every value, and behind it where it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from velocity.config.job import Job, LoadedJob, flatten

HEAD = "# The resolved job. Each value's origin: the file and line, the command line, the default, or the planner.\n"


def is_resolved(path: Path) -> bool:
    """True for the job.yaml of a run folder, and not for a job file that a user wrote."""
    try:
        with path.open("rb") as stream:
            return stream.read(len(HEAD)) == HEAD.encode()
    except OSError:
        return False


def render(loaded: LoadedJob[Job]) -> str:
    """The job as YAML; each leaf's origin stands behind it as a comment."""
    return HEAD + "".join(line + "\n" for line in _lines(loaded.job.model_dump(mode="json"), loaded.origins, "", 0))


def _lines(data: dict[str, Any], origins: dict[str, str], prefix: str, depth: int) -> list[str]:
    lines = []
    for name, value in data.items():
        key, indent = f"{prefix}.{name}" if prefix else name, "  " * depth
        label = yaml.safe_dump(name, width=float("inf")).removesuffix("\n...\n").strip()
        if isinstance(value, list) and value and all(isinstance(item, dict) and item for item in value):
            lines.append(f"{indent}{label}:")
            for i, item in enumerate(value):
                inner = _lines(item, origins, f"{key}.{i}", depth + 2)
                lines += [f"{indent}  - {inner[0].strip()}", *inner[1:]]
        elif isinstance(value, dict) and value:
            lines += [f"{indent}{label}:", *_lines(value, origins, key, depth + 1)]
        else:
            lines.append(f"{indent}{label}: {json.dumps(value, ensure_ascii=False)}  # {origins.get(key, 'default')}")
    return lines


def differences(old: Job, new: Job) -> list[str]:
    """What makes the two different jobs, a line each; empty where the one can go on from the other."""
    before, after = (flatten(job.model_dump(mode="json")) for job in (old, new))
    keys = [
        key for key in {**before, **after} if not any(key == free or key.startswith(free + ".") for free in new.FREE)
    ]
    return [f"{key}: {before.get(key)} → {after.get(key)}" for key in keys if before.get(key) != after.get(key)]
