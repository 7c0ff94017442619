"""Guarantee 9: planted secrets, which a model and a server tell, stand in nothing that a run says or leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.commands import step_lines
from tests.making import write_job
from tests.running import prepare_folder
from velocity import cli

SIGNATURE = "pl4nted-signature-0123456789abcdef"
PLANTED = {
    "AWS_SECRET_ACCESS_KEY": "pl4nted/of+AWS/0123456789/abcdefghijklm",
    "HF_TOKEN": "hf_pl4nted0123456789",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefpl4nted0",
    "MY_PASSWORD": 'pl4nted "with" \\ all: üx',
}
TELLS_ALL = '''
import logging, os, sys, warnings
from transformers import LlamaForCausalLM

NAMES = ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "WANDB_API_KEY", "MY_PASSWORD"]
ADDRESS = "https://b.s3.aws/x?X-Amz-Date=1&X-Amz-Signature=SIGNATURE&a=b"


class TellsAll(LlamaForCausalLM):
    """What careless libraries do with secrets, at once."""

    def __init__(self, config):
        super().__init__(config)
        self.calls, told = 0, [os.environ[name] for name in NAMES] + [ADDRESS]
        self.model.register_forward_pre_hook(self.fails)
        for text in told:
            print("model on stdout:", text, flush=True)
            print(f"model on stderr: {text!r}\\n", end="", file=sys.stderr)  # at once: two ranks write there
            warnings.warn("model warns: " + text)
            logging.getLogger("transformers").error("model logs: %s", text)
            logging.error("model logs: %s", text)

    def fails(self, module, given):
        self.calls += 1
        if self.calls > 12 and "MODEL_FAILS" in os.environ:
            told = {name: os.environ[name] for name in NAMES}
            raise RuntimeError(f"403 for {ADDRESS}, environment {told}, https://me:{os.environ['HF_TOKEN']}@host/")
'''


class _Server(BaseHTTPRequestHandler):
    """A store behind a server that signs addresses: each is answered with where the file really is."""

    def __init__(self, content: bytes, *given: object) -> None:
        self.content = content
        super().__init__(*given)  # type: ignore[arg-type]

    def do_GET(self) -> None:  # noqa: N802 - the library's name
        path, _, signed = self.path.partition("?")
        if not signed:
            self.send_response(302)
            self.send_header("Location", f"{path}?X-Amz-Signature={SIGNATURE}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = path == "/train.jsonl"
        self.send_response(200 if found else 403)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.send_header("ETag", "1")
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(self.content)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def log_message(self, *given: object) -> None:
        """Nothing."""


@pytest.fixture(name="address")
def _address(tmp_path: Path) -> Iterator[str]:
    """Of the server that has the folder's data."""
    prepare_folder(tmp_path)
    serve = partial(_Server, (tmp_path / "train.jsonl").read_bytes())
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(name="job")
def _job(tmp_path: Path, address: str) -> Path:
    """Two ranks, a tracker, and a model with code of its own."""
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "tells_all.TellsAll"}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "tells_all.py").write_text(TELLS_ALL.replace("SIGNATURE", SIGNATURE))
    return write_job(
        tmp_path / "job.yaml",
        model={"path": str(tmp_path / "model"), "trust_remote_code": True},
        data={"train": f"{address}/train.jsonl"},
        strategy={"zero": 1, "precision": "fp32"},
        batch={"rows": 8, "micro": 2},
        duration={"steps": 4},
        checkpoint={"every": 1, "keep": 1},
        launch={"processes": 2},
        tracking=["tensorboard"],
    )


class Outcome:
    """A command that has ended: its status, all that it said, and the command lines of all processes meanwhile."""

    def __init__(self, folder: Path, *arguments: object, **environment: str) -> None:
        inside = {name: str(folder / "made") for name in ("HF_HOME", "TMPDIR")}
        (folder / "made").mkdir(exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "velocity", *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, **PLANTED, **inside, **environment},
        )  # fmt: skip
        self.command_lines: set[str] = set()
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=[ended])
        watcher.start()
        try:
            self.said, _ = process.communicate(timeout=240)
        finally:
            process.kill()
            ended.set()
            watcher.join()
        self.status = process.returncode

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(0.1):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    self.command_lines.add(entry.read_text(errors="replace").replace("\0", " "))
                except OSError:  # it ended while we looked
                    continue


def told(content: bytes) -> list[str]:
    """Names of the planted secrets that stand in the content, however they are written."""
    found = []
    for name, value in {**PLANTED, "the signature": SIGNATURE}.items():
        escaped = {
            json.dumps(value)[1:-1],
            json.dumps(value, ensure_ascii=False)[1:-1],
            repr(value)[1:-1],
            quote(value),
        }
        if any(text.encode() in content for text in {value, *escaped}):
            found.append(name)
    return found


def left(folder: Path) -> dict[str, list[str]]:
    """The files that tell a secret, but the model's code, in which it was planted."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc"))
    return {str(path): names for path in files if (names := told(path.read_bytes()))}


def test_nothing_that_a_run_leaves_says_or_starts_tells_a_secret(tmp_path: Path, job: Path) -> None:
    run = tmp_path / "run"
    failed = Outcome(tmp_path, "--debug", "run", job, MODEL_FAILS="1")
    assert failed.status == 1, failed.said
    assert "Traceback" in failed.said and "RuntimeError: 403 for https://b.s3.aws/x?X-Amz-Date=1" in failed.said
    assert "RuntimeError: 403" in "".join(file.read_text() for file in (run / "failures").iterdir())
    assert step_lines(run), "it failed while it trained"
    assert left(tmp_path) == {}

    done = Outcome(tmp_path, "run", job)
    assert done.status == 0, done.said
    assert left(tmp_path) == {}
    assert {"job.yaml", "environment.json", "plan.json", "tensorboard", "log.txt", "model"} <= set(os.listdir(run))
    assert (run / "model" / "README.md").is_file()

    for outcome in (failed, done):
        assert told(outcome.said.encode()) == []
        for way in ("model on stdout: ***", "model on stderr: '***'", "model logs: ***"):  # warnings are not shown
            assert way in outcome.said, "the planted secrets were told"
        lines = outcome.command_lines
        for module in ("velocity.distributed.node", "velocity.distributed.begin"):
            assert any(f" -m {module} " in line for line in lines), "they were looked at"
        assert [line for line in lines if told(line.encode())] == []
    assert not run.stat().st_mode & 0o007 and not (tmp_path / "cache").stat().st_mode & 0o007


def test_what_a_server_answers_and_what_a_user_writes_is_not_told_either(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    job = write_job(tmp_path / "job.yaml")
    said = []
    for path in ("other.jsonl", f"train.jsonl?X-Amz-Signature={SIGNATURE}", f"{PLANTED['HF_TOKEN']}.jsonl"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["check", str(job), f"data.train={address}/{path}"])
        assert ended.value.code == 2
        said.append(capsys.readouterr().err)
        assert told(said[-1].encode()) == []
    assert "error: cannot list " in said[0] and "X-Amz-Signature=***" in said[0] and "403" in said[0]
    assert said[1].startswith("error: data.train.0.path holds credentials in an address")
    assert said[2].startswith("error: data.train.0.path holds the value of the environment variable HF_TOKEN")
    assert left(tmp_path) == {}
