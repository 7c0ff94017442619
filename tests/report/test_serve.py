"""The page of a run that goes on: who may see it, what is served, and when it changes."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.checkpoints.mirrored import Server as S3
from tests.report.runs_made import step_line, training_run
from velocity.checkpoints.mirror import send_records
from velocity.checkpoints.store import open_store
from velocity.errors import UserError
from velocity.report import serve
from velocity.report.serve import Mirrored, Server, Watched
from velocity.runs.folder import RunFolder

Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(watched: Watched, host: str = "127.0.0.1", token: str = "") -> Iterator[Server]:
    server = Server(watched, host, 0, token)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(server: Server, path: str = "/", method: str = "GET", **headers: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = (answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    connection.close()
    return found


def watched(folder: Path) -> Watched:
    return Watched(training_run(folder / "run").path, "runs/run")


def add_line(run: RunFolder) -> None:
    with run.metrics.open("a") as stream:
        stream.write(json.dumps(step_line(31, 31)) + "\n")


def test_the_page_is_served_with_its_state_and_changes_with_a_new_line(tmp_path: Path):
    one = watched(tmp_path)
    with serving(one) as server:
        status, headers, page = ask(server)
        assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
        state = ask(server, "/state")[2].decode()
        assert f'data-state="{state}"'.encode() in page and headers["etag"] == f'"{state}"'
        assert ask(server, "/state", If_None_Match=headers["etag"])[0] == 304
        assert ask(server, If_None_Match=headers["etag"])[:1] == (304,)
        add_line(RunFolder(one.folder))
        assert ask(server, "/state", If_None_Match=headers["etag"])[0] == 200
        assert b"<dd>31</dd>" in ask(server)[2]


def test_a_page_is_made_once_for_a_state(tmp_path: Path):
    one = watched(tmp_path)
    assert one.page() is one.page()


def test_a_run_whose_process_dies_changes_its_state(tmp_path: Path):
    one = watched(tmp_path)
    run = RunFolder(one.folder)
    run.set_status("running")
    with run.owned():
        before = one.state()
        assert b">running</span>" in one.page()[1]
    assert one.state() != before
    assert b">killed</span>" in one.page()[1]


@pytest.mark.parametrize(
    "path", ["/state/", "/job.yaml", "/../job.yaml", "/%2e%2e/job.yaml", "//etc/passwd", "/favicon.ico"]
)
def test_nothing_but_the_page_and_its_state_is_served(tmp_path: Path, path: str):
    with serving(watched(tmp_path)) as server:
        status, _, body = ask(server, path)
        assert (status, body) == (404, b"nothing here\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_only_reading_is_allowed(tmp_path: Path, method: str):
    with serving(watched(tmp_path)) as server:
        status, headers, _ = ask(server, method=method)
        assert (status, headers["allow"]) == (405, "GET, HEAD")
        assert ask(server, "/state", method="HEAD")[2] == b""


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8787", "127.0.0.1.evil.example", "[::2]:80", ""])
def test_another_hosts_name_is_refused(tmp_path: Path, host: str):
    with serving(watched(tmp_path)) as server:
        assert ask(server, Host=host)[0] == 421


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9000", "127.0.0.1:1", "[::1]:8787"])
def test_our_names_are_taken_at_any_port_as_a_tunnel_has_another(tmp_path: Path, host: str):
    with serving(watched(tmp_path)) as server:
        assert ask(server, "/state", Host=host)[0] == 200


def test_where_others_may_ask_they_need_the_token(tmp_path: Path):
    with serving(watched(tmp_path), "0.0.0.0", "a1b2c3") as server:
        for path in ("/", "/state", "/a1b2c4/", "/a1b2c3", "/a1b2c3x/", "/%ff/"):
            assert ask(server, path)[0] == 404, path
        assert ask(server, "/a1b2c3/")[0] == 200
        assert ask(server, "/a1b2c3/state")[0] == 200
        assert ask(server, "/a1b2c3/job.yaml")[0] == 404
        assert ask(server, "/a1b2c3/", Host="evil.example")[0] == 421
        assert ask(server, "/a1b2c3/state", Host="192.0.2.7:80")[0] == 200, "a number cannot be made to point elsewhere"
        assert server.address == f"http://{socket.gethostname()}:{server.server_address[1]}/a1b2c3/"


def test_answers_are_neither_kept_nor_framed_nor_sniffed(tmp_path: Path):
    with serving(watched(tmp_path)) as server:
        _, headers, _ = ask(server)
        assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer", "the token stands in the address"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "python" not in headers["server"].lower()


def test_a_run_that_cannot_be_read_any_more_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    one = watched(tmp_path)
    (one.folder / "job.yaml").unlink()
    with serving(one) as server:
        assert ask(server)[0] == 503
    assert "WARNING: not a run folder" in capsys.readouterr().err


def test_a_secret_does_not_reach_a_browser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MY_TOKEN", "swordfish-0815-x")
    one = watched(tmp_path)
    (one.folder / "status.json").write_text(json.dumps({"state": "complete", "why": "for swordfish-0815-x"}))
    assert b"swordfish" not in one.page()[1]


def test_a_mirror_is_looked_at_now_and_then_and_its_silence_leaves_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run, mirror = training_run(tmp_path / "run"), tmp_path / "mirror"
    run.set_status("running")
    send_records(open_store(str(mirror)), run.path)
    source = Mirrored(str(mirror), tmp_path / "here")
    one = Watched(tmp_path / "here", "s3://x/run", source.refresh, here=False)
    state, page = one.page()
    assert b">running</span>" in page and b"s3://x/" in page
    add_line(run)
    send_records(open_store(str(mirror)), run.path)
    assert one.state() == state, "it was looked at a moment ago"
    monkeypatch.setattr(serve, "MIRROR_SECONDS", 0.0)
    assert one.state() != state
    state = one.state()
    (mirror / "run" / "job.yaml").unlink()
    (mirror / "proofs" / "run" / "job.yaml.json").unlink()
    assert one.state() == state
    assert "WARNING: there is nothing of a run" in capsys.readouterr().err


def test_a_run_is_watched_at_its_s3_mirror_which_may_be_away_for_a_while(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(serve, "MIRROR_SECONDS", 0.0)
    monkeypatch.setattr("velocity.checkpoints.results.PAUSE_SECONDS", 0.0)
    run, url = training_run(tmp_path / "run"), s3.bucket()
    send_records(open_store(url), run.path)
    one = serve._watched(url, tmp_path / "here")
    with serving(one) as server:
        assert b"<dd>30</dd>" in ask(server)[2]
        add_line(run)
        send_records(open_store(url), run.path)
        s3.requests.clear()
        assert b"<dd>31</dd>" in ask(server)[2]
        s3.stop()
        try:
            assert b"<dd>31</dd>" in ask(server)[2], "what was last seen stays"
        finally:
            s3.start()
        assert "WARNING: the mirror does not answer" in capsys.readouterr().err
        assert ask(server)[0] == 200
    assert not s3.sent("."), "whoever looks on writes nothing"


def test_a_port_that_is_taken_is_said(tmp_path: Path):
    run = training_run(tmp_path / "run").path
    with serving(Watched(run, "run")) as server, pytest.raises(UserError) as caught:
        serve.watch(str(run), "127.0.0.1", server.server_address[1])
    assert f"port {server.server_address[1]} is taken" in str(caught.value)
    with pytest.raises(UserError, match="cannot serve at"):
        serve.watch(str(run), "192.0.2.1", 0)


def test_what_is_no_run_is_refused_at_once(tmp_path: Path):
    with pytest.raises(UserError, match="not a run folder"):
        serve.watch(str(tmp_path), "127.0.0.1", 0)


def test_the_command_prints_its_address_and_ends_silently(tmp_path: Path):
    run = training_run(tmp_path / "run").path
    command = [sys.executable, "-m", "velocity", "watch", str(run), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith(f"watching {run} at http://127.0.0.1:") and line.endswith("/ until Ctrl-C\n")
    process.send_signal(signal.SIGINT)
    out, rest = process.communicate(timeout=60)
    assert (process.returncode, out, rest) == (0, "", "")
