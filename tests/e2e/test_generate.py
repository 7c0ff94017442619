"""A generate job as a user meets it: checked, run behind the job that makes its model, shown, skipped, refused.

Two commands run at a time, because each is mostly starting. What is refused before a rank starts is asked of the
command line in this process.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.ahead import done_ahead
from tests.commands import processes_naming, velocity
from tests.generating import (
    completions,
    family,
    family_folder,
    greedy,
    inputs_of,
    planned,
    question_folder,
    questions,
    whole_model,
    write_generate_job,
)
from tests.making import tiny_tokenizer, write_job, write_jsonl
from tests.running import ragged_rows
from velocity import cli
from velocity.data.tokenizer import load_tokenizer
from velocity.inference.probe import plain_logps
from velocity.inference.text import Spoken
from velocity.process import STOPS

Done = subprocess.CompletedProcess
ROWS = 40  # shards of 16, 16 and 8


def lay_out_chain(here: Path) -> None:
    """An sft job, and a generate job whose model is what that job makes."""
    question_folder(here, ROWS)
    write_jsonl(here / "train.jsonl", ragged_rows(12))
    write_job(here / "sft.yaml", output=str(here / "tuned"), launch={"processes": 1})
    write_generate_job(here / "answer.yaml", {"model": str(here / "tuned")})


def chain(here: Path) -> Done[str]:
    """Both in one command."""
    return velocity("run", here / "sft.yaml", here / "answer.yaml")


def bad_letter(folder: Path) -> str:
    """A letter that the model has no number for; the probe does not use it."""
    model, tokenizer = whole_model(folder), load_tokenizer(folder)
    for letter in "QZXJ":
        (token,) = tokenizer(letter, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            model.get_input_embeddings().weight[token] = torch.nan
        if all(bool(logps_V.isfinite().all()) for logps_V in plain_logps(model)):
            model.save_pretrained(str(folder))
            return letter
        model = whole_model(folder)
    raise AssertionError("the probe uses all of them")


def lay_out_failing(here: Path) -> None:
    """A job in which one row has no finite logits."""
    family_folder(here / "model", "Qwen2")
    letter = bad_letter(here / "model")
    write_jsonl(here / "prompts.jsonl", [*questions(17), {"prompt": f"What is {letter}?"}, *questions(ROWS)[18:]])
    write_generate_job(here / "job.yaml")


def failing(here: Path) -> tuple[Done[str], list[dict[str, Any]], Done[str]]:
    """Its run, its completions, and the same command once more."""
    first = velocity("run", here / "job.yaml", "--processes", 2)
    return first, completions(here / "run"), velocity("run", here / "job.yaml")


def lay_out_unsplit(here: Path) -> None:
    """A job on an engine that does not split its model."""
    tokenizer = tiny_tokenizer()
    family("GPT2", vocab_size=len(tokenizer)).save_pretrained(str(here / "model"))
    tokenizer.save_pretrained(str(here / "model"))
    write_jsonl(here / "prompts.jsonl", questions(3))
    write_generate_job(here / "job.yaml", {"generation.engine": "deepspeed"})


def unsplit(here: Path) -> Done[str]:
    """Its run on two ranks."""
    return velocity("run", here / "job.yaml", "--processes", 2)


# What is laid out before, as models are not to be made in two threads at once; and what is asked of the command.
WORK: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any]]] = {
    "chain": (lay_out_chain, chain),
    "failing": (lay_out_failing, failing),
    "unsplit": (lay_out_unsplit, unsplit),
}
Ahead = Callable[[str], tuple[Path, Any]]


@pytest.fixture(name="ahead", scope="module")
def _ahead(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ahead]:
    """A piece of work's folder and result, by its name; what the session's tests ask for is started at once."""
    asked = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    folders = {name: tmp_path_factory.mktemp(name) for name in WORK if name in asked}
    for name, here in folders.items():
        WORK[name][0](here)
    with done_ahead({name: partial(WORK[name][1], here) for name, here in folders.items()}) as results:
        yield lambda name: (folders[name], results(name))


@pytest.fixture(name="chain", scope="module")
def _chain(ahead: Ahead) -> Path:
    here, done = ahead("chain")
    assert done.returncode == 0, done.stderr
    return here


def test_a_job_answers_with_the_model_that_the_job_before_it_made(chain: Path) -> None:
    job = planned(write_generate_job(chain / "again.yaml", {"model": str(chain / "tuned" / "model")})).job
    prompts, model = inputs_of(job).prompts, whole_model(chain / "tuned" / "model")
    spoken = Spoken(load_tokenizer(chain / "tuned" / "model"), job.generation, chain / "tuned" / "model")
    lines = completions(chain / "run")
    assert [line["number"] for line in lines] == list(range(ROWS))
    for row in range(0, ROWS, 7):
        ids = prompts.ids(row)
        assert lines[row]["completion"] == spoken.text(ids, greedy(model, ids, 8, spoken.ends))


def test_a_run_leaves_what_the_design_names_and_nothing_else(chain: Path) -> None:
    names = {path.name for path in (chain / "run").iterdir()}
    assert names == {
        "job.yaml", "deepspeed.json", "plan.json", "environment.json", "metrics.jsonl", "status.json", "log.txt",
        "completions.jsonl", "report.html",
    }  # fmt: skip
    environment = json.loads((chain / "run" / "environment.json").read_text())
    assert environment["world_size"] == 1
    assert environment["model_folder"] == str(chain / "tuned" / "model")
    assert environment["prompts"]["prompts"] == ROWS
    assert processes_naming(str(chain)) == []


def test_a_finished_run_is_shown_and_there_is_nothing_to_do(chain: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert in_process("show", chain / "run") == 0
    shown = capfd.readouterr().out
    assert f"generate with {chain}/tuned, complete" in shown and f"{ROWS} completions ended:" in shown
    assert in_process("show", chain / "run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["rows"] == ROWS
    before = (chain / "run" / "completions.jsonl").read_bytes()
    assert in_process("run", chain / "answer.yaml") == 0
    assert "is complete: the same job with the same inputs; nothing to do" in capfd.readouterr().err
    assert in_process("run", chain / "answer.yaml", "generation.engine=zero", "batch.rows=1") == 0
    assert "nothing to do" in capfd.readouterr().err, "how rows are computed is free"
    assert (chain / "run" / "completions.jsonl").read_bytes() == before


def test_a_job_that_says_something_else_does_not_take_over_the_folder(
    chain: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert in_process("run", chain / "answer.yaml", "generation.temperature=0.7") == 2
    what, where, fix = problem(capfd.readouterr().err)
    assert what.startswith("the output folder belongs to another job") and "generation.temperature: 0.0 → 0.7" in what
    assert where == str(chain / "run") and "--fresh" in fix


def test_check_and_dry_run_say_what_is_planned_and_write_no_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    question_folder(tmp_path, ROWS)
    job = write_generate_job(tmp_path / "job.yaml", {"strategy": "auto", "launch": {"processes": "auto"}})
    capfd.readouterr()
    assert in_process("check", job) == 0
    shown = capfd.readouterr().out
    assert f"{ROWS} rows, {ROWS} prompts" in shown and "<|im_start|>assistant" in shown
    assert in_process("check", job, "--json") == 0
    assert json.loads(capfd.readouterr().out)["counts"]["prompts"] == ROWS
    assert in_process("run", job, "--dry-run") == 0
    dry = capfd.readouterr().out
    assert 'engine: "transformers"  # planner: ' in dry
    assert dry.splitlines()[-1].endswith(f"velocity.inference.run {tmp_path}/run")
    assert not (tmp_path / "run").exists()


@pytest.fixture(name="failing", scope="module")
def _failing(ahead: Ahead) -> tuple[Path, Done[str], list[dict[str, Any]], Done[str]]:
    here, (first, lines, again) = ahead("failing")
    return here, first, lines, again


Failing = tuple[Path, "Done[str]", list[dict[str, Any]], "Done[str]"]


def test_a_row_without_numbers_fails_alone_and_is_named(failing: Failing) -> None:
    here, first, lines, _ = failing
    assert first.returncode == 1, first.stderr
    what, where, fix = problem(first.stderr)
    assert what == "1 of 40 rows failed by themselves, the first: the model's logits are not finite"
    assert where == f"{here}/run/completions.jsonl, id {lines[17]['id']}"
    assert fix == "run the same command to try them again"
    assert [line.get("number") for line in lines] == [*range(17), None, *range(18, ROWS)]
    assert [line["id"] for line in lines if "error" in line] == [lines[17]["id"]]
    assert (lines[17]["completion"], lines[17]["finish_reason"]) == (None, "error")
    assert lines[17]["error"] == "the model's logits are not finite"
    assert all(line["completion"] for line in lines if "error" not in line)


def test_the_same_command_tries_the_failed_row_again_and_its_shard_alone(failing: Failing) -> None:
    here, _, lines, again = failing
    assert again.returncode == 1
    assert "1 of 40 rows failed by themselves" in again.stderr
    assert completions(here / "run") == lines, "all others are as they were"
    told = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    rows = [line["rows"] for line in told if "rows" in line]
    assert rows[0] == ROWS and rows[-1] in (8, 16), "a shard"
    assert json.loads((here / "run" / "status.json").read_text())["state"] == "failed"


@pytest.fixture(name="unsplit", scope="module")
def _unsplit(ahead: Ahead) -> tuple[Path, Done[str]]:
    return ahead("unsplit")


def test_a_model_that_is_not_split_right_is_refused_before_a_row_is_answered(unsplit: tuple[Path, Done[str]]) -> None:
    here, done = unsplit
    assert done.returncode == 2, done.stderr
    what, where, fix = problem(done.stderr)
    assert what == "DeepSpeed Inference does not split gpt2 right"
    assert where == "generation.engine" and "transformers" in fix
    assert not (here / "run" / "completions.jsonl").exists()
    assert processes_naming(str(here)) == []


def in_process(*arguments: object) -> int:
    """The exit status of the command line, asked in this process."""
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def problem(said: str) -> list[str]:
    """The lines of the one problem that was said, without the words that begin them."""
    assert "Traceback" not in said, said
    assert len(re.findall("^error: ", said, re.MULTILINE)) == 1, said
    lines = said[said.index("error: ") :].splitlines()
    begin = ("error: ", "  where: ", "  fix:   ")
    assert len(lines) == 3 and all(map(str.startswith, lines, begin)), said
    return [line.removeprefix(word) for line, word in zip(lines, begin, strict=True)]


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong, and what is said of it. `{here}` stands for the case's folder."""

    what: str
    where: str
    fix: str
    status: int = 2
    rows: Any = field(default_factory=lambda: [{"prompt": "Why?"}, {"prompt": "When?"}])  # or the file's text
    job: Mapping[str, Any] = field(default_factory=dict)
    damage: Callable[[Path], object] = lambda here: None


def put_run(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("three years")


CASES = {
    "a row without a prompt": Bad("no prompt in the fields .'question'.", "{here}/prompts.jsonl:2", "mend the row",
        rows=[{"prompt": "Why?"}, {"question": "When?"}]),
    "a field that a template needs": Bad("the template cannot be filled: 'name' is undefined", "{here}/prompts.jsonl:1",
        "mend the row", job={"data.prompts": {"path": "{here}/prompts.jsonl", "template": "What is {{ name }}?"}}),
    "a template that is none": Bad("not a valid template", ".*data.prompts", "e.g. What is",
        job={"data.prompts": {"path": "{here}/prompts.jsonl", "template": "{{ name"}}),
    "a line that is not JSON": Bad("not valid JSON", "{here}/prompts.jsonl:2", "mend the row",
        rows='{"prompt": "Why?"}\n{"prompt": \n'),
    "an empty file": Bad("no prompt to answer: there is no row", "{here}/prompts.jsonl", "check the path", rows=""),
    "no file": Bad("no such file or folder: {here}/absent.jsonl", ".*job.yaml:.*data", "check the path",
        job={"data.prompts": "{here}/absent.jsonl"}),
    "no chat template": Bad("the tokenizer has no chat template", "{here}/prompts.jsonl:1", ".",
        damage=lambda here: (here / "model" / "chat_template.jinja").unlink()),
    "a prompt that is too long": Bad(r"the prompt has \d+ tokens, and 504 are allowed", "{here}/prompts.jsonl:2",
        ".*on_long_prompt: cut or skip", rows=[{"prompt": "Why?"}, {"prompt": "Why? " * 300}]),  # 512 - 8
    "completions that fill the context": Bad("generation.max_new_tokens=512 fills the model's context of 512 tokens",
        ".*job.yaml:.* generation.max_new_tokens", "leave room for prompts: at most 511",
        job={"generation.max_new_tokens": 512}),
    "a model without weights": Bad("the model folder has no weights", "{here}/model", "it needs model.safetensors",
        damage=lambda here: (here / "model" / "model.safetensors").unlink()),
    "a group that does not divide the processes": Bad("strategy.tensor=2 does not divide launch.processes=3",
        ".*job.yaml:.* strategy.tensor", "use a divisor, or --processes 2",
        job={"strategy.tensor": 2, "launch.processes": 3}),
    "an end token of another model": Bad("'<.eot.>' is no single token of this model",
        ".*generation.end_tokens", "name one of its tokens", job={"generation.end_tokens": "<|eot|>"}),
    "an output that is somebody's": Bad("the output folder is not empty, and no run of Velocity", "{here}/run",
        "choose another output", damage=put_run),
    "an output that cannot be written": Bad("(Not a directory|File exists)", "{here}/prompts.jsonl", "check the path",
        status=1, job={"output": "{here}/prompts.jsonl/run"}),
}  # fmt: skip


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return question_folder(tmp_path_factory.mktemp("bad"), 1) / "model"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_said_in_three_lines_and_leaves_everything_as_it_was(
    tmp_path: Path, model: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    shutil.copytree(model, tmp_path / "model")
    if isinstance(case.rows, str):
        (tmp_path / "prompts.jsonl").write_text(case.rows)
    else:
        write_jsonl(tmp_path / "prompts.jsonl", case.rows)
    here = json.dumps(dict(case.job)).replace("{here}", str(tmp_path))
    job = write_generate_job(tmp_path / "job.yaml", json.loads(here))
    case.damage(tmp_path)
    before = tree(tmp_path)
    capfd.readouterr()
    assert in_process("run", job) == case.status
    for said, pattern in zip(problem(capfd.readouterr().err), (case.what, case.where, case.fix), strict=True):
        assert re.match(pattern.replace("{here}", re.escape(str(tmp_path))), said), said
    after = tree(tmp_path)
    assert {path: after.get(path) for path in before} == before, "it changed a file"
    new = {path for path in after if path not in before}
    assert not [path for path in new if not re.match(r"cache/|\.run\.lock$", path)], "it wrote"
