"""The guides say what the code does: options, verbs, messages, memory, job files."""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import re
import shlex
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import ROOT, code, is_whole, job_blocks, pages, read, spans
from tests.evaluating import job_values as evaluate_data
from tests.making import generate_data, job_data
from velocity.cli import app
from velocity.config.generate import GenerateJob
from velocity.config.job import flatten
from velocity.config.load import FAMILIES, load_job, option_names
from velocity.config.training import TrainingJob
from velocity.errors import UserError
from velocity.planner.device import Precision
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster
from velocity.planner.memory import state_bytes
from velocity.planner.plan import Zero, resolve
from velocity.planner.size import ModelSize

WITH_JOBS = [page for page in pages() if job_blocks(page)]
# Later issues' verbs stand in the page of the architecture, as a reason for its layers.
WITH_VERBS = [page for page in pages() if page != "docs/architecture.md"]
VERB = re.compile(r"(?<![\w./-])velocity ([a-z][\w-]*)")
PATH = re.compile(r"[a-z_]+(?:\.[a-z0-9_]+)+")
ENDINGS = {"csv", "jinja", "json", "jsonl", "md", "py", "safetensors", "tsv", "txt", "yaml"}
PLACEHOLDERS = {"key.path=value", "[KEY=VALUE...]"}
ONE_OF_SEVERAL = ("batch", "duration")  # sections whose keys exclude each other: a part replaces the section
# How the names of options begin that generate jobs alone have.
GENERATES = ("generation", "data.prompts", "data.max_prompt_tokens", "data.on_long_prompt")


@cache
def verbs() -> set[str]:
    groups = {str(group.name) for group in app.registered_groups}
    named = (command.name or str(getattr(command.callback, "__name__", "")) for command in app.registered_commands)
    return groups | set(named)


@cache
def known_paths() -> set[str]:
    """Every option and every section, as a dotted path."""
    parts = [name.split(".") for name in option_names()]
    return {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}


def unknown_paths(span: str) -> list[str]:
    """The option paths in a piece of code that the job file does not have; file names are none."""
    sections = {name.split(".")[0] for name in option_names() if "." in name} - {"deepspeed"}
    found = []
    for path in PATH.findall(span.partition("=")[0]):
        head, *rest = path.split(".")
        plain = ".".join([head, *(part for part in rest if not part.isdigit())])
        if head in sections and rest[-1] not in ENDINGS and plain not in known_paths():
            found.append(path)
    return found


@cache
def said() -> list[str]:
    """Every piece of text in the source but docstrings; those between the variable parts of a message, too."""
    nodes = [node for file in (ROOT / "src").rglob("*.py") for node in ast.walk(ast.parse(file.read_text("utf-8")))]
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    texts = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in docstrings]
    return [node.value for node in texts if isinstance(node.value, str)]


def unsaid(message: str) -> list[str]:
    """The fixed parts of a message that stand nowhere in the source."""
    parts = [part.strip() for part in re.split(r"…|\bDP world size of 2\b", message)]
    return [part for part in parts if len(part.strip("'.,;: ")) > 2 and not any(part in text for text in said())]


def messages() -> list[str]:
    """The messages of the first column of every table."""
    rows = re.findall(r"^\| (`.+?) \|", read("docs/guides/troubleshooting.md"), re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def write(job: dict[str, Any], folder: Path) -> Path:
    """The job as a file."""
    (folder / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False), "utf-8")
    return folder / "job.yaml"


def completed(block: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A block that is a whole job; or a small job with its sections in place of, or merged into, its own."""
    if is_whole(block):
        return block
    job = copy.deepcopy(like(block)(folder))
    for name, section in block.items():
        if isinstance(section, dict) and isinstance(job.get(name), dict) and name not in ONE_OF_SEVERAL:
            job[name] |= section
        else:
            job[name] = section
    return job


def like(block: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """What makes a small job of the task that the block belongs to."""
    if block.get("task") == "evaluate" or {"retrieval", "benchmarks"} & set(block) or "kind" in str(block.get("data")):
        return evaluate_data
    generates = block.get("task") == "generate" or any(key.startswith(GENERATES) for key in flatten(block))
    return generate_data if generates else job_data


def commands_with_overrides(page: str) -> list[list[str]]:
    """The overrides of each command that a page shows, as a shell would split them."""
    lines = [line.strip() for piece in code(page) for line in piece.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines if re.match(r"velocity (run|check) ", line)]
    overrides = ([word for word in line if "=" in word and word not in PLACEHOLDERS] for line in words)
    return [given for given in overrides if given]


def writer() -> Any:
    """docs/options.py as a module."""
    spec = importlib.util.spec_from_file_location("options", ROOT / "docs" / "options.py")
    assert spec and spec.loader
    options = importlib.util.module_from_spec(spec)
    sys.modules["options"] = options  # its dataclass looks itself up
    spec.loader.exec_module(options)
    return options


def test_the_tables_of_options_are_those_of_the_code():
    options, text = writer(), read("docs/guides/job-file.md")
    assert options.page(text) == text, "python docs/options.py"
    assert options.page(text.replace("steps between checkpoints", "something else")) == text


def test_the_tables_have_every_option_with_a_meaning():
    rows = [option.row() for option in writer().options()]
    assert sorted({name for row in rows for name in re.findall(r"`([a-z_.]+)`", row.split(" | ")[0])}) == option_names()
    assert [row for row in rows if row.endswith("|  |\n")] == []


def test_kinds_that_mean_different_things_by_one_name_have_a_table_each_and_others_share_one():
    headings: dict[str, list[str]] = {}
    for option in writer().options():
        headings.setdefault(option.heading.splitlines()[0], []).append(f"{option.names[0]} {option.default}")
    assert "preference.beta `2.0`" in headings["#### preference, `kind: simpo`"]
    assert "preference.sft_weight `0.0`" in headings["#### preference, `kind: dpo`"]
    assert "preference.sft_weight `1.0`" in headings["#### preference, `kind: cpo`"]
    assert headings["### preference"] == ["preference.kind `dpo`"]
    kinds = ("adamw", "sgd", "muon", "adafactor", "adamw_8bit", "lion")  # their decays differ
    tables = ["### optimizer", *(f"#### optimizer, `kind: {kind}`" for kind in kinds)]
    assert [heading for heading in headings if "optimizer" in heading] == tables


def test_every_option_of_a_generate_job_stands_in_its_own_tables_or_is_named_above_one_of_them():
    options = writer()
    training, _, own = options.tables().partition("### The job itself, `task: generate`\n")
    named = set(re.findall(r"`([a-z_.]+)`", own))
    assert {"model", "launch", "output", "seed", "data.cache", "strategy.precision"} <= named, "as above"
    names = {name for option in options.family_options(GenerateJob) for name in option.names}
    assert {name for name in names - named if name.split(".")[0] not in ("model", "launch")} == set()
    for row in ("| `strategy.precision` |", "| `data.cache` |", "| `seed` |", "| `model.path` |"):
        assert row in training and row not in own


def test_the_keys_that_may_differ_are_those_of_each_class_of_jobs():
    lists = writer().free().split("With task ")[1:]
    assert [set(re.findall(r"^- `(.+)`$", text, re.MULTILINE)) for text in lists] == [set(one.FREE) for one in FAMILIES]
    headings = ["`pretrain`, `sft` or `preference`:", "`generate`:", "`evaluate`:"]
    assert [text.splitlines()[0] for text in lists] == headings


@pytest.mark.parametrize("page", WITH_JOBS)
def test_every_yaml_block_is_a_job_or_a_part_of_one(page: str, tmp_path: Path):
    for block in job_blocks(page):
        assert load_job(write(completed(block, tmp_path), tmp_path)).job.output


def test_a_part_is_completed_to_a_job_that_has_its_sections(tmp_path: Path):
    parts: list[dict[str, Any]] = [{"generation": {"beams": 2}}, {"data": {"prompts": "a"}}]
    for part in parts:
        assert isinstance(load_job(write(completed(part, tmp_path), tmp_path)).job, GenerateJob)
    assert isinstance(load_job(write(completed({"strategy": {"zero": 3}}, tmp_path), tmp_path)).job, TrainingJob)


def test_a_block_with_a_key_that_does_not_exist_is_found(tmp_path: Path):
    with pytest.raises(UserError, match=r"unknown key 'checkpoint\.often'"):
        load_job(write(completed({"checkpoint": {"often": 5}}, tmp_path), tmp_path))


def test_the_walks_have_whole_job_files():
    walks = ["README.md", *(f"docs/guides/{name}.md" for name in ("job-file", "pretraining", "sft"))]
    assert [page for page in walks if not any(map(is_whole, job_blocks(page)))] == []


@pytest.mark.parametrize("page", pages())
def test_every_option_that_a_page_names_exists(page: str):
    assert [path for span in spans(page) for path in unknown_paths(span)] == []


def test_an_option_that_does_not_exist_is_found():
    assert unknown_paths("data.train.0.weight=2") == []
    assert unknown_paths("model.safetensors and data.md") == []
    assert unknown_paths("strategy.offload") == unknown_paths("strategy.offload.path") == []
    assert unknown_paths("strategy.overlap") == ["strategy.overlap"]


@pytest.mark.parametrize("page", WITH_VERBS)
def test_every_verb_that_a_page_names_is_one_of_the_command_line(page: str):
    named = {verb for piece in code(page) for verb in VERB.findall(piece)}
    assert named <= verbs(), f"{page} names {sorted(named - verbs())}"


def test_every_verb_is_explained_in_the_page_of_the_job_file():
    assert len(verbs()) >= 4
    assert [verb for verb in sorted(verbs()) if f"| `velocity {verb}" not in read("docs/guides/job-file.md")] == []


@pytest.mark.parametrize("page", [page for page in pages() if commands_with_overrides(page)])
def test_every_override_that_a_page_shows_is_accepted(page: str, tmp_path: Path):
    own = next(filter(is_whole, job_blocks(page)), job_data(tmp_path))
    for given in commands_with_overrides(page):
        job = copy.deepcopy(own)
        if any(".train.0." in override for override in given):
            job["data"]["train"] = [{"path": job["data"]["train"]}]
        assert load_job(write(job, tmp_path), given).job != load_job(write(job, tmp_path)).job


def test_the_overrides_of_a_page_are_seen():
    assert ["data.eval={unseen: a.jsonl}"] in commands_with_overrides("docs/guides/job-file.md")


@pytest.mark.parametrize("message", messages())
def test_every_message_of_the_troubleshooting_page_is_one_that_velocity_says(message: str):
    foreign = ("optim_states.pt", "AssertionError", "DP world size")  # DeepSpeed says these
    assert unsaid(message) == [] or any(word in message for word in foreign)


def test_a_message_that_velocity_does_not_say_is_found():
    assert len(messages()) > 50
    assert unsaid("the … memory is full") == []
    assert unsaid("the tokenizer has a token …, the model embeds few …") == [", the model embeds few"]


def state(parameters: int, precision: Precision, zero: Zero, processes: int) -> float:
    """What the planner counts for a job that trains all parameters."""
    job = TrainingJob.model_validate({**job_data(Path("folder")), "optimizer": {"learning_rate": 1e-4}})
    return state_bytes(job, ModelSize(parameters, 1, 1), precision, zero, processes)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_the_table_of_memory_is_what_the_planner_computes(zero: Zero):
    rows = dict(re.findall(r"^\| ([0-3]) \| (.+) \|$", read("docs/guides/hardware.md"), re.MULTILINE))
    cells = [cell.strip() for cell in rows[str(zero)].split("|")]
    forms: list[tuple[str, Precision]] = [(cells[0], "fp32"), (cells[1], "bf16")]
    for form, precision in forms:
        fixed, shared = re.fullmatch(r"(?:(\d+) \+ )?(\d+)/N", form).groups()  # type: ignore[union-attr]
        for processes in (1, 2, 8):
            assert int(fixed or 0) + int(shared) / processes == state(1, precision, zero, processes)
    assert float(cells[2]) == state(1, "bf16", zero, 8)


def test_eight_billion_parameters_on_eight_gpus_get_the_stage_that_the_guide_says(tmp_path: Path):
    text = read("docs/guides/hardware.md")
    stages: tuple[Zero, ...] = (1, 2, 3)
    sizes = [round(state(8 * 10**9, "bf16", zero, 8) / 1e9) for zero in stages]
    assert "{}, {} or {} GB of state a GPU".format(*sizes) in " ".join(text.split())
    (tmp_path / "config.json").write_text(
        json.dumps({"num_hidden_layers": 32, "hidden_size": 4096, "dtype": "bfloat16"})
    )
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(16 * 10**9)  # a hole: it takes no room on the disk
    machine = Hardware(96, 1024.0, True, (("NVIDIA H100 80GB HBM3", 79.6, 9.0),) * 8)
    chosen = resolve(load_job(write(job_data(tmp_path), tmp_path)), Cluster(machine), tmp_path).job.strategy
    assert f"`auto` takes stage {chosen.zero}" in " ".join(text.split())


def test_the_decisions_are_listed_and_numbered_without_a_gap():
    files = sorted(file.name for file in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    assert [int(name[:4]) for name in files] == list(range(len(files)))
    listed = re.findall(r"^\| \[(\d{4})\]\((\S+)\) \|", read("docs/adr/README.md"), re.MULTILINE)
    assert [name for _, name in listed] == files[1:]
    assert all(name.startswith(number) for number, name in listed)


@pytest.mark.parametrize("page", [page for page in pages() if re.match(r"docs/adr/0(?!000)", page)])
def test_a_decision_has_the_form_of_the_template(page: str):
    heads = re.findall(r"^## .+$", read("docs/adr/0000-template.md"), re.MULTILINE)
    assert re.findall(r"^## .+$", read(page), re.MULTILINE) == heads
    assert re.match(rf"# {Path(page).name[:4]}\. .+\n\nStatus: .+ Date: \d{{4}}-\d\d-\d\d\.\n", read(page))
    named = re.findall(r"`((?:tests|benchmarks|docs|src)/[\w/.-]+)`", read(page))
    assert [name for name in named if not (ROOT / name).exists()] == []
