"""Bad input through the real command: an exit status, three lines that say what, where and what to do, nothing broken.

Each case is a folder of its own with a good job in it, in which one thing is wrong. Two commands run at a time, because
each is mostly starting.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.ahead import done_ahead
from tests.commands import start, velocity
from tests.making import TEMPLATES, chat, tiny_model, tiny_model_folder, tiny_tokenizer, write_job, write_jsonl
from tests.running import WORDS
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.data.store import SequenceStore
from velocity.runs.folder import RunFolder

GOOD = [chat("Why?", "Because."), chat("When?", "Now.", "Where?", "Here.")]
LONG = chat("Why?", "So it is. " * 100)
# What a refused command may leave: the lock of a folder it did not take, notes on files it looked at.
HARMLESS = re.compile(r"^(\.run\.lock|cache/hashes/\w+\.txt|cache/sequences/\w+\.lock)$")


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong, and what is said of it: patterns of the three lines.

    In a pattern `{here}` stands for the case's folder, and `{line[KEY]}` for the line of a key in its job file.
    """

    what: str
    where: str
    fix: str
    status: int = 2
    data: Any = field(default_factory=lambda: GOOD)  # rows of train.jsonl, or its text
    job: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    tokenised: bool = False  # its data are good: a whole store may be left for the next job
    damage: Callable[[Path], object] = lambda here: None  # to the case's folder; its model lies in model/


def cut_weights(here: Path) -> None:
    path = here / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def grow_tokenizer(here: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(str(here / "model"))


def tear_tokenizer(here: Path) -> None:
    path = here / "model" / "tokenizer.json"
    path.write_text(path.read_text()[:1000])


def put_run(here: Path) -> None:
    """The output folder of another job: the same with another seed."""
    run = RunFolder(here / "run")
    run.path.mkdir()
    run.job.write_text(render(load_job(here / "job.yaml", ["seed=7"])))
    run.set_status("complete", inputs="of another time")
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')


def put_thesis(here: Path) -> None:
    (here / "run").mkdir()
    (here / "run" / "thesis.txt").write_text("three years")


CASES = {
    # the job file and the command line
    "no job file": Bad("cannot read the job file: .*No such file", "{here}/job.yaml", "give the path of a YAML file",
        damage=lambda here: (here / "job.yaml").unlink()),
    "an unknown key": Bad("unknown key 'optimiser'", "{here}/job.yaml:{line[optimiser]}", "did you mean 'optimizer'[?]",
        job={"optimizer": None, "optimiser": {"learning_rate": 1.0}}),
    "two keys that contradict": Bad("batch: give the global batch once", "{here}/job.yaml:{line[batch]}",
        "either tokens: 131072 or rows: 64", job={"batch": {"rows": 4, "tokens": 1024}}),
    "a setting that is decided": Bad("deepspeed.train_batch_size is decided by Velocity",
        "{here}/job.yaml:{line[train_batch_size]}", "set batch instead", job={"deepspeed": {"train_batch_size": 8}}),
    "an unknown attention": Bad("model.attention: .*'auto', 'varlen'.* [(]it is 'flash'[)]",
        "{here}/job.yaml:{line[attention]}", "", job={"model": {"path": "model", "attention": "flash"}}),
    "an override without a value": Bad("cannot read the job file: .*'seed'", "seed", "give the path of a YAML file",
        overrides=("seed",)),
    "an override of nothing": Bad("unknown key 'data.trian'", "command line", "did you mean 'train'[?]",
        overrides=("data.trian=x.jsonl",)),
    "an override that is not YAML": Bad("the value of 'seed' is not valid YAML", "command line", "quote it",
        overrides=("seed=[1",)),
    "fp16 without a GPU": Bad("precision fp16 needs a GPU", "command line strategy.precision", "use auto, bf16 or fp32",
        overrides=("strategy.precision=fp16",)),
    # the model
    "no model": Bad("no such model folder: {here}/model", "{here}/job.yaml:{line[model]} model",
        "give a folder, a run's output, or a hub id",
        damage=lambda here: shutil.rmtree(here / "model")),
    "a model without weights": Bad("the model folder has no weights", "{here}/model", "it needs model.safetensors.*",
        damage=lambda here: (here / "model" / "model.safetensors").unlink()),
    "a truncated shard": Bad(r"the weights are truncated: \d+ bytes, of \d+", "{here}/model/model.safetensors",
        "copy the model again", damage=cut_weights),
    "a tokenizer larger than the embedding": Bad(r"the tokenizer has a token (\d+), the model embeds only \1",
        "{here}/model", "use the tokenizer that belongs to the model", damage=grow_tokenizer),
    "a torn tokenizer": Bad(".*tokenizer", "{here}/model", ".+", damage=tear_tokenizer),
    "a tokenizer without a chat template": Bad("the tokenizer has no chat template", "{here}/train.jsonl:1", ".+",
        damage=lambda here: (here / "model" / "chat_template.jinja").unlink()),
    "a chat template that is no template": Bad("the chat template", "{here}/(train.jsonl:1|bad.jinja)", ".+",
        job={"data": {"chat_template": "bad.jinja"}},
        damage=lambda here: (here / "bad.jinja").write_text("{% for message in messages %}\n{{ message[ }}\n")),
    # the data
    "no data file": Bad("no such file or folder: {here}/absent.jsonl", "{here}/job.yaml:{line[train]} data.train",
        "check the path",
        job={"data": {"train": "absent.jsonl"}}),
    "an empty data set": Bad("no record to train on: the data set is empty", "{here}/train.jsonl", "check the path",
        data=""),
    "a line that is not JSON": Bad("not valid JSON", "{here}/train.jsonl:2$", "mend the record.*on_bad_record: skip",
        data=json.dumps(GOOD[0]) + '\n{"messages": [{"role"\n'),
    "a field that is missing": Bad("content is NoneType, not text", r"{here}/train.jsonl:2 field messages\[1\].content",
        "mend the record", data=[GOOD[0], {"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}]),
    "a field of another type": Bad("'text' is int, not text", "{here}/train.jsonl:3 field text", "mend the record",
        job={"task": "pretrain"}, data=[{"text": "a"}, {"text": "b"}, {"text": 3}]),
    "roles that the template refuses": Bad("the chat template refuses it: .*roles must alternate",
        "{here}/train.jsonl:2 field messages", "mend the record", job={"data": {"chat_template": "mistral.jinja"}},
        data=[GOOD[0], {"messages": [*GOOD[0]["messages"], *GOOD[0]["messages"][1:]]}],
        damage=lambda here: shutil.copy(TEMPLATES / "mistral.jinja", here)),
    "a chat that is too long": Bad(r"the chat has \d+ tokens, data.sequence_length is 256",
        "{here}/train.jsonl:2 field messages", "raise data.sequence_length, or data.on_long_chat: cut or skip",
        data=[GOOD[0], LONG]),
    "a compressed file that is torn": Bad("cannot read the file", "{here}/train.jsonl.gz", "is it whole",
        job={"data": {"train": "train.jsonl.gz"}},
        damage=lambda here: (here / "train.jsonl.gz").write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\3 torn")),
    # the output folder
    "another job's output": Bad("the output folder belongs to another job; different: seed: 7 → 0", "{here}/run",
        "choose another output, or .* --fresh", tokenised=True, damage=put_run),
    "a folder that is no run": Bad("the output folder is not empty, and no run of Velocity", "{here}/run",
        "choose another output", tokenised=True, damage=put_thesis),
    "an output that cannot be written": Bad(".*(Not a directory|File exists)", "{here}/train.jsonl", ".+", status=1,
        job={"output": "train.jsonl/run"}),
}  # fmt: skip
for tracker in ("wandb", "mlflow"):
    if not importlib.util.find_spec(tracker):
        CASES["a tracker that is not installed"] = Bad(
            f"tracking: {tracker} is not installed", "command line tracking",
            "pip install 'ProfoundVelocity.tracking.'",
            overrides=(f"tracking={tracker}",),
        )  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a command said and left; files by their path below the case's folder."""

    done: subprocess.CompletedProcess[str]
    before: dict[str, bytes]
    after: dict[str, bytes]
    names: dict[str, Any]  # for the patterns


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def lay_out(case: Bad, here: Path, model: Path) -> Path:
    """The case's folder; paths of its job are below it."""
    shutil.copytree(model, here / "model")
    if isinstance(case.data, str):
        (here / "train.jsonl").write_text(case.data)
    else:
        write_jsonl(here / "train.jsonl", case.data)
    sections = json.loads(json.dumps(case.job), object_hook=lambda section: _below(here, section))
    job = write_job(here / "job.yaml", **_below(here, sections))
    case.damage(here)
    return job


def _below(here: Path, section: dict[str, Any]) -> dict[str, Any]:
    paths = ("path", "train", "chat_template", "output")
    return {key: str(here / value) if key in paths and isinstance(value, str) else value
            for key, value in section.items()}  # fmt: skip


def ask(case: Bad, here: Path, model: Path) -> Answer:
    job = lay_out(case, here, model)
    lines = job.read_text().splitlines() if job.exists() else []
    numbers = {line.strip().split(":")[0]: number for number, line in enumerate(lines, 1)}
    before = tree(here)
    done = velocity("run", job, *case.overrides)
    return Answer(done, before, tree(here), {"here": here, "line": numbers})


@pytest.fixture(name="model", scope="module")
def _model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("bad") / "model")


Ahead = Callable[[str], Any]


@pytest.fixture(name="ahead", scope="module")
def _ahead(model: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ahead]:
    """The result of a piece of work by its name; what the session's tests ask for is started at once."""
    items: list[Any] = request.session.items
    asked = {name for item in items for name in item.fixturenames}
    asked |= {item.callspec.params.get("name") for item in items if hasattr(item, "callspec")}
    work: dict[str, Callable[[Path, Path], Any]] = {
        "leaking": leak, "full_checkpoint": fill_at_a_checkpoint, "full_cache": fill_while_tokenising,
        "checked": check, **{name: partial(ask, case) for name, case in CASES.items()},
    }  # fmt: skip
    here = {name: tmp_path_factory.mktemp("work") for name in work if name in asked}
    with done_ahead({name: partial(work[name], folder, model) for name, folder in here.items()}) as results:
        yield results


def problem(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of the one problem that was said, without the words that begin them."""
    assert "Traceback" not in done.stderr, done.stderr
    assert len(re.findall("^error: ", done.stderr, re.MULTILINE)) == 1, done.stderr
    lines = done.stderr[done.stderr.index("error: ") :].splitlines()
    assert 2 <= len(lines) <= 3, done.stderr  # two where the first one names all that is right
    lines += ["  fix:   "] * (3 - len(lines))
    begin = ("error: ", "  where: ", "  fix:   ")
    assert all(line.startswith(word) for line, word in zip(lines, begin, strict=True)), done.stderr
    return [line.removeprefix(word) for line, word in zip(lines, begin, strict=True)]


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_said_in_three_lines_and_leaves_everything_as_it_was(ahead: Ahead, name: str):
    case, answer = CASES[name], ahead(name)
    assert answer.done.returncode == case.status, answer.done.stderr
    assert answer.done.stdout == ""
    for said, pattern in zip(problem(answer.done), (case.what, case.where, case.fix), strict=True):
        assert re.match(pattern.format_map({**answer.names, "here": re.escape(str(answer.names["here"]))}), said)
    stores = [path for path in (answer.names["here"] / "cache" / "sequences").glob("*") if path.is_dir()]
    assert [len(SequenceStore(path)) for path in stores] in ([], [len(GOOD)] * case.tokenised), "a store is whole"
    new = {path for path in answer.after if path not in answer.before and not HARMLESS.match(path)}
    assert not [path for path in new if not case.tokenised or not path.startswith("cache/sequences/")], "it wrote"
    assert {path: answer.after.get(path) for path in answer.before} == answer.before, "it changed a file"


BAD_ROWS = [GOOD[0], {"messages": "no"}, LONG, GOOD[1], {"body": "x"}]


def check(here: Path, model: Path) -> list[dict[str, Any]]:
    """What one `velocity check` counts in rows with a chat that is too long, cut; and in bad ones, left out."""
    write_jsonl(here / "long.jsonl", [GOOD[0], LONG, GOOD[1]])
    write_jsonl(here / "bad.jsonl", BAD_ROWS)
    cut = {"train": str(here / "long.jsonl"), "on_long_chat": "cut"}
    left_out = {"train": str(here / "bad.jsonl"), "on_long_chat": "skip", "on_bad_record": "skip"}
    jobs = [write_job(here / f"{i}.yaml", model=str(model), data=data) for i, data in enumerate((cut, left_out))]
    done = velocity("check", *jobs, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["sets"]["train"] for line in done.stdout.splitlines()]


@pytest.fixture(name="checked", scope="module")
def _checked(ahead: Ahead) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ahead("checked")
    return found


def test_a_chat_that_is_too_long_is_cut_and_counted_where_the_job_says_so(checked: list[dict[str, Any]]):
    found = checked[0]
    assert (found["records"], found["cut"], found["rejected"]) == (3, 1, 0)
    assert (found["counts"]["sequences"], found["counts"]["percentiles"]["100"]) == (3, 256)


def test_bad_records_and_long_chats_are_left_out_and_counted_where_the_job_says_so(checked: list[dict[str, Any]]):
    found = checked[1]
    assert (found["records"], found["cut"], found["rejected"]) == (5, 0, 3)
    assert found["counts"]["sequences"] == 2


def leak(here: Path, model: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run of a model that takes a packed row for one sequence (OPT does), on data with bad records."""
    from transformers import OPTConfig

    tokenizer = tiny_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer), hidden_size=64, word_embed_proj_dim=64, ffn_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, init_std=0.2, dropout=0.0,
    )  # fmt: skip
    tiny_model(config).save_pretrained(str(here / "model"))
    tokenizer.save_pretrained(str(here / "model"))
    write_jsonl(here / "train.jsonl", BAD_ROWS)
    job = write_job(
        here / "job.yaml",
        model={"path": str(here / "model"), "attention": "sdpa"},
        data={"on_bad_record": "skip", "on_long_chat": "skip"},
    )
    return here, velocity("run", job)


Leaking = tuple[Path, "subprocess.CompletedProcess[str]"]


@pytest.fixture(name="leaking", scope="module")
def _leaking(ahead: Ahead) -> Leaking:
    found: Leaking = ahead("leaking")
    return found


def test_an_attention_that_leaks_between_packed_sequences_is_refused_before_the_first_step(leaking: Leaking):
    here, done = leaking
    assert done.returncode == 2, done.stderr
    what, where, fix = problem(done)
    assert what.startswith("packed sequences see each other with this model's attention")
    assert where == "model.attention"
    assert fix == "set model.attention: auto, or data.packing: false"
    assert not (here / "run" / "model").exists()
    assert not (here / "run" / "checkpoints").exists()
    assert json.loads((here / "run" / "status.json").read_text())["state"] == "failed"


def test_records_that_were_left_out_lie_in_the_run_with_place_and_reason(leaking: Leaking):
    here, _ = leaking
    lines = [json.loads(line) for line in (here / "run" / "rejected.jsonl").read_text().splitlines()]
    assert {line["file"] for line in lines} == {str(here / "train.jsonl")}
    assert [(line["line"], line["field"]) for line in lines] == [(2, "messages"), (3, "messages"), (5, "")]
    assert lines[0]["reason"] == "'messages' is not a list of messages"
    assert re.fullmatch(r"the chat has \d+ tokens, data.sequence_length is 256", lines[1]["reason"])
    assert lines[2]["reason"].startswith("no format has the fields ['body']")


def test_an_output_folder_that_another_process_holds_is_refused_by_its_holder(tmp_path: Path, model: Path):
    write_jsonl(tmp_path / "train.jsonl", GOOD)
    job = write_job(tmp_path / "job.yaml", model=str(model))
    with RunFolder(tmp_path / "run").owned():
        before = tree(tmp_path)
        done = velocity("run", job)
        assert tree(tmp_path) == before, "also the lock still names its holder"
    assert done.returncode == 2
    what, where, _ = problem(done)
    assert what.startswith(f"the run folder is held by process {os.getpid()} on ")
    assert where == str(tmp_path / "run")


def may_mount() -> bool:
    """True where we may mount a file system: root with the right to."""
    if os.geteuid() or not shutil.which("mount"):
        return False
    status = re.findall(r"CapEff:\s+(\w+)", Path("/proc/self/status").read_text())
    return bool(status) and bool(int(status[0], 16) & 1 << 21)  # CAP_SYS_ADMIN


@contextmanager
def small_disk(folder: Path, kibibytes: int) -> Iterator[tuple[Path, int | None]]:
    """A file system in memory that holds so much, and is gone at the end.

    Where we may not mount one it is a plain folder, and with it comes a limit in bytes for a command's files.
    """
    folder.mkdir()
    if not may_mount():
        yield folder, kibibytes << 10
        return
    size = f"size={kibibytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=True)
    try:
        yield folder, None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def stopped_by(job: Path, largest_file: int | None, *overrides: str) -> subprocess.CompletedProcess[str]:
    """A run; where `largest_file` is given no file of it may be larger, so a write fails as on a full disk."""
    process = start("run", job, *overrides)
    if largest_file is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest_file, largest_file))
    _, said = process.communicate(timeout=120)
    return subprocess.CompletedProcess([], process.returncode, "", said)


def many_rows(count: int) -> list[Any]:
    return [chat("Why?", " ".join(WORDS[(i + k) % len(WORDS)] for k in range(40))) for i in range(count)]


Full = tuple[Path, "subprocess.CompletedProcess[str]", dict[str, bytes]]


def fill_while_tokenising(here: Path, model: Path) -> Full:
    """A run whose cache lies on a small disk, and what it left there."""
    # 1500 chats of about 100 tokens, at 5 bytes a token, are 750 kB; the notes on files are a few pages
    write_jsonl(here / "train.jsonl", many_rows(1500))
    with small_disk(here / "small", 256) as (disk, largest_file):
        job = write_job(here / "job.yaml", model=str(model), data={"cache": str(disk / "cache")})
        done = stopped_by(job, largest_file)
        return here, done, tree(disk)


def fill_at_a_checkpoint(here: Path, model: Path) -> Full:
    """A run whose output lies on a disk that is too small for its checkpoints, and what it left there."""
    # the model has about 115,000 parameters: a checkpoint holds 4 bytes of each, the model itself 2
    write_jsonl(here / "train.jsonl", GOOD)
    with small_disk(here / "small", 440) as (disk, largest_file):
        overrides = ("strategy.precision=bf16", "strategy.zero=1", "launch.processes=1")
        job = write_job(here / "job.yaml", model=str(model), output=str(disk / "run"))
        done = stopped_by(job, largest_file and largest_file // 2, *overrides)
        return here, done, tree(disk / "run")


@pytest.fixture(name="full_cache", scope="module")
def _full_cache(ahead: Ahead) -> Full:
    found: Full = ahead("full_cache")
    return found


@pytest.fixture(name="full_checkpoint", scope="module")
def _full_checkpoint(ahead: Ahead) -> Full:
    found: Full = ahead("full_checkpoint")
    return found


def test_a_disk_that_is_full_ends_the_tokenising_and_leaves_no_half_of_a_store(full_cache: Full):
    here, done, left = full_cache
    assert done.returncode == 1, done.stderr
    what, where, fix = problem(done)
    assert re.search("No space left on device|File too large", what)
    assert str(here / "small") in where
    assert "free space" in fix
    assert not [path for path in left if not HARMLESS.match(path)], "half of a store is left"
    assert not (here / "run").exists()


def test_a_disk_that_is_full_at_a_checkpoint_is_said_loudly_and_the_run_goes_on(full_checkpoint: Full):
    _, done, left = full_checkpoint
    assert done.returncode == 0, done.stderr
    assert re.search("WARNING: no checkpoint of step 2: .*(No space left on device|File too large)", done.stderr)
    assert "the run goes on, and there is none yet" in done.stderr
    *steps, saved = [json.loads(line) for line in left["metrics.jsonl"].splitlines()]
    assert [line["step"] for line in steps] == [1, 2] and saved["checkpoint"]["trouble"]
    assert any(path.startswith("model/") for path in left), "what the model needs is there again"
    assert not [path for path in left if "checkpoints/" in path]
