"""The pages as text, code and links. It knows no rule: those are the tests beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from velocity.config.load import TASKS

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")


def pages() -> list[str]:
    """Every page that a reader is led to, as a path from the root."""
    top = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    found = [*top, *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]
    return sorted(page.relative_to(ROOT).as_posix() for page in found)


@cache
def read(page: str) -> str:
    """A page's text."""
    return (ROOT / page).read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [text for _, named, text in FENCE.findall(read(page)) if named == language]


def prose(text: str) -> str:
    """The text without its fenced blocks."""
    return FENCE.sub("", text)


def spans(page: str) -> list[str]:
    """What stands between backticks in a page's prose."""
    return SPAN.findall(prose(read(page)))


def code(page: str) -> Iterator[str]:
    """Every piece of code of a page: spans, fenced blocks, and lines indented by four."""
    yield from spans(page)
    yield from (text for _, _, text in FENCE.findall(read(page)))
    yield from (line.strip() for line in prose(read(page)).splitlines() if line.startswith("    "))


def links(text: str) -> list[str]:
    """The targets of a text's links to other pages; what leads out of the repository is left out."""
    return [target for target in LINK.findall(prose(text)) if "://" not in target]


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def job_blocks(page: str) -> list[dict[str, Any]]:
    """The YAML blocks of a page, but Kubernetes' own objects: whole jobs and parts of one."""
    found = [yaml.safe_load(text) for text in blocks(page, "yaml")]
    return [block for block in found if "apiVersion" not in block]


def is_whole(block: dict[str, Any]) -> bool:
    """True where a block is a job file, and not some sections of one."""
    family = TASKS.get(str(block.get("task")))
    return family is not None and all(name in block for name, info in family.model_fields.items() if info.is_required())
