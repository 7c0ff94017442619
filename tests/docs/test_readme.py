"""What the README tells a newcomer to type works, and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, anchors, code, is_whole, job_blocks, links, pages, read
from velocity.config.load import load_job
from velocity.runs.folder import RunFolder

TARGET = re.compile(r"^([a-z-]+):", re.MULTILINE)
MAKE = re.compile(r"^make ([a-z][a-z-]*)", re.MULTILINE)
COMMANDS = {"make demo", "make test"}


def targets() -> set[str]:
    return set(TARGET.findall((ROOT / "Makefile").read_text("utf-8")))


def broken_links(page: str, text: str) -> list[str]:
    """The links of a page's text whose file or heading does not exist."""
    broken = []
    for link in links(text):
        path, _, anchor = link.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(link)
    return broken


def test_the_two_commands_of_the_readme_stand_each_on_a_line_and_are_targets():
    lines = {line.strip() for line in read("README.md").splitlines() if line.startswith("    ")}
    assert lines >= COMMANDS
    assert {command.removeprefix("make ") for command in COMMANDS} <= targets()


def test_continuous_integration_runs_the_test_command_of_the_readme():
    assert (ROOT / ".ci" / "run").read_text("utf-8").splitlines()[-1] == "make test"


@pytest.mark.parametrize("page", pages())
def test_every_make_target_that_a_page_names_exists(page: str):
    named = {target for piece in code(page) for target in MAKE.findall(piece)}
    assert named <= targets(), f"{page} names {sorted(named - targets())}"


@pytest.mark.parametrize("page", pages())
def test_every_link_leads_to_a_file_and_a_heading(page: str):
    assert broken_links(page, read(page)) == []


def test_a_broken_link_is_found():
    text = "[a](docs/nowhere.md) [b](LICENSE) [c](CHANGELOG.md#nothing) [d](#read-on) [e](https://example.org)"
    assert broken_links("README.md", text) == ["docs/nowhere.md", "CHANGELOG.md#nothing"]


def test_the_job_file_of_the_readme_is_whole_and_loads(tmp_path: Path):
    whole = [block for block in job_blocks("README.md") if is_whole(block)]
    assert whole, "the README has no job file"
    text = re.findall(r"```yaml\n(.*?)```", read("README.md"), re.DOTALL)[0]
    (tmp_path / "first.yaml").write_text(text, "utf-8")
    loaded = load_job(tmp_path / "first.yaml", ["optimizer.learning_rate=1e-5"])
    assert loaded.job.output == "runs/first"
    assert "velocity show runs/first" in read("README.md")


def test_the_readme_names_what_a_run_folder_holds():
    written = read("README.md").partition("## What a run leaves")[2].partition("\n## ")[0]
    run = RunFolder("run")
    paths = [path for path in (*vars(run).values(), *run.completions.values()) if isinstance(path, Path)]
    entries = {path.name for path in paths if path != run.path}
    assert len(entries) >= 13
    assert [name for name in sorted(entries) if f"`{name}`" not in written and f"`{name}/`" not in written] == []


def test_the_pinned_torch_is_the_one_that_a_cpu_machine_is_told_to_install():
    assert "pip install -c constraints.txt torch" in read("README.md")
    pinned = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert [line for line in pinned if line.startswith("torch==")]
