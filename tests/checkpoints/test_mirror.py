"""Finished checkpoints reach the mirror whole, marker last; whatever happens to it, the run goes on."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.checkpoints.mirrored import KEY, SECRET, Server, contents, make_checkpoint, wait_for
from velocity.checkpoints import mirror as module
from velocity.checkpoints.commit import MARKER, damage, remove
from velocity.checkpoints.mirror import Mirror
from velocity.checkpoints.store import Store, open_store

CHILD = """
import sys
from pathlib import Path
from velocity.checkpoints.mirror import Mirror
from velocity.checkpoints.store import S3Store
S3Store.part_bytes = 5 << 20
print(Mirror(sys.argv[1], Path(sys.argv[2]), first=True, kept=list).finish(float(sys.argv[3])))
"""


def make_run(path: Path, *steps: int, **sizes: int) -> Path:
    """A run folder with a checkpoint after each of these steps."""
    for step in steps:
        make_checkpoint(path, step, **sizes)
    path.mkdir(exist_ok=True)
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    (path / "job.yaml").write_text("task: sft\n")
    (path / "secret.txt").write_text("not a record")
    return path


def marked(store: Store) -> list[str]:
    return [name for name in store.names() if name.startswith("step-") and store.read(f"{name}/{MARKER}")]


def finished(url: str, run: Path) -> Store:
    """The mirror once the run's newest checkpoint is there."""
    assert Mirror(url, run, first=True, kept=list).finish(30) == []
    return open_store(url)


def test_a_folder_gets_the_checkpoint_file_for_file_and_the_records(tmp_path: Path):
    run = make_run(tmp_path / "run", 2)
    there = tmp_path / "mirror"
    finished(str(there), run)
    assert contents(there / "step-00000002") == contents(run / "checkpoints" / "step-00000002")
    assert damage(there / "step-00000002") is None
    assert sorted(contents(there / "run")) == ["job.yaml", "metrics.jsonl"]
    assert list((run / "checkpoints").iterdir()) == [run / "checkpoints" / "step-00000002"]


def test_the_marker_is_sent_last_and_nothing_is_sent_twice(s3: Server, tmp_path: Path):
    run, url = make_run(tmp_path / "run", 2, parts=3), s3.bucket()
    store = finished(url, run)
    sent = s3.sent(r"sft/(?:step|run)[^ ?]*")
    assert sent[:2] == ["sft/run/job.yaml", "sft/run/metrics.jsonl"]
    assert sorted(sent[2:-2]) == [*(f"sft/step-00000002/part-0000{i}.safetensors" for i in range(3)),
                                  "sft/step-00000002/state.json"]  # fmt: skip
    assert sent[-2:] == ["sft/step-00000002/manifest.json", "sft/step-00000002/COMMITTED"]
    s3.requests.clear()
    (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n')
    finished(url, run)
    assert s3.sent(r"sft/(?:step|run)[^ ?]*") == ["sft/run/metrics.jsonl"]
    assert store.read("run/metrics.jsonl") == b'{"step": 1}\n{"step": 2}\n'


# two files of 30 MiB are twelve parts of 5 MiB, of which four are on their way at a time
@pytest.mark.parametrize(
    ("parts", "size", "requests", "at_a_time"),
    [(40, 10_000, 40, 1), (2, 30 << 20, 12, 4)],
    ids=["between files", "within a file"],
)
def test_a_run_killed_while_it_sends_later_sends_the_rest(
    s3: Server, tmp_path: Path, parts: int, size: int, requests: int, at_a_time: int
):
    run, url = make_run(tmp_path / "run", 2, parts=parts, size=size), s3.bucket()
    pattern = r"/part-\d+\.safetensors(?:\?.*)?$"
    command = [sys.executable, "-c", CHILD, url, str(run), "60"]
    with subprocess.Popen(command) as child:
        wait_for(lambda: len(s3.sent(pattern)) >= 3)
        child.send_signal(signal.SIGKILL)
    store = open_store(url)
    assert marked(store) == []
    wait_for(lambda: not [thread for thread in threading.enumerate() if "process_request_thread" in thread.name])
    assert 3 <= len(s3.sent(pattern)) < requests
    subprocess.run(command, check=True, timeout=60)
    assert marked(store) == ["step-00000002"]
    assert requests <= len(s3.sent(pattern)) <= requests + at_a_time  # what was cut off is sent again


def test_a_server_that_is_down_for_a_while_is_said_once_and_tried_again(
    s3: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, url = make_run(tmp_path / "run", 2), s3.bucket()
    s3.stop()
    mirror = Mirror(url, run, first=True, kept=list)
    try:
        wait_for(lambda: mirror._failures)
        mirror.offer(make_checkpoint(run, 4))
        wait_for(lambda: mirror._failures > 1)
    finally:
        s3.start()
    assert mirror.finish(30) == []
    assert marked(open_store(url)) == ["step-00000004"], "the older one is no longer of interest"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert re.match(rf"WARNING: nothing reaches the mirror {url}: EndpointConnectionError: .*tries again", lines[0])
    assert lines[1] == f"the mirror {url} takes files again"


def test_a_run_ends_though_its_mirror_is_down_and_says_what_is_not_there(
    s3: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = make_run(tmp_path / "run", 2)
    (tmp_path / "file").write_text("where the mirror's folder is to be")
    url = str(tmp_path / "file" / "mirror")
    mirror = Mirror(url, run, first=True, kept=list)
    wait_for(lambda: mirror._failures)
    assert mirror.finish(0.1) == ["step-00000002", "the run's records"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.match(rf"WARNING: not mirrored to {url}: step-00000002, the run's records: NotADirectoryError", last)
    wait_for(lambda: not mirror._thread.is_alive())


def test_a_process_ends_at_once_though_its_mirror_hangs(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path / "run", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes what it is sent, and never answers
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        command = [sys.executable, "-c", CHILD, "s3://bucket/run", str(run), "2"]
        done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "['step-00000002', \"the run's records\"]\n"
    left = "step-00000002, the run's records"
    assert done.stderr == f"WARNING: not mirrored to s3://bucket/run: {left}: 2 s were not enough\n"


def test_a_checkpoint_that_is_pruned_here_while_it_is_sent_arrives_whole(tmp_path: Path, s3: Server):
    run, url = make_run(tmp_path / "run", 2, parts=10), s3.bucket()
    before = contents(run / "checkpoints" / "step-00000002")
    mirror = Mirror(url, run, first=True, kept=list)
    wait_for(lambda: s3.sent("part-"))
    remove(run / "checkpoints" / "step-00000002")
    assert mirror.finish(30) == []
    store = open_store(url)
    assert {name: store.read(f"step-00000002/{name}") for name in before} == before
    assert list((run / "checkpoints").iterdir()) == []


def test_without_hard_links_a_pruned_checkpoint_is_said_and_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def refuse(*given: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    run, mirror = make_run(tmp_path / "run"), tmp_path / "mirror"
    there = Mirror(str(mirror), run, first=True, kept=list)
    there.offer(make_checkpoint(run, 2))
    wait_for(lambda: (mirror / "step-00000002" / MARKER).is_file())
    with there._changed:  # it cannot begin before we let it
        gone = make_checkpoint(run, 4)
        there.offer(gone)
        remove(gone)
    assert there.finish(30) == []
    assert capsys.readouterr().err == "WARNING: step-00000004 is not mirrored: it was pruned before it was sent\n"


def test_a_checkpoint_that_was_damaged_here_is_not_marked_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path / "run", 2)
    part = run / "checkpoints" / "step-00000002" / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[::-1])
    store = finished(str(tmp_path / "mirror"), run)
    assert marked(store) == []
    assert re.search(
        r"WARNING: step-00000002 is not mirrored: \S+/part-00001.safetensors has changed", capsys.readouterr().err
    )


def test_a_file_that_was_altered_there_is_sent_again(tmp_path: Path):
    run, mirror = make_run(tmp_path / "run", 2), tmp_path / "mirror"
    finished(str(mirror), run)
    part = mirror / "step-00000002" / "part-00001.safetensors"
    content = bytearray(part.read_bytes())
    content[5000] ^= 1
    part.write_bytes(content)
    finished(str(mirror), run)
    assert damage(mirror / "step-00000002") is None


def test_another_checkpoint_after_the_same_step_takes_the_ones_place(tmp_path: Path):
    mirror = tmp_path / "mirror"
    finished(str(mirror), make_run(tmp_path / "one", 2))
    other = make_run(tmp_path / "other", 2, size=5000)
    finished(str(mirror), other)
    assert contents(mirror / "step-00000002") == contents(other / "checkpoints" / "step-00000002")


def test_the_mirror_is_pruned_as_the_run_folder_is(s3: Server, tmp_path: Path):
    run, url = make_run(tmp_path / "run"), s3.bucket()
    mirror = Mirror(url, run, first=True, kept=lambda steps: [*steps[-2:], *(step for step in steps if step % 4 == 0)])
    store = open_store(url)
    store.write("step-00000001/part-00000.safetensors", b"of a run that was killed")
    for step in (2, 4, 6, 8, 10):
        mirror.offer(make_checkpoint(run, step))
        wait_for(partial(s3.sent, f"sft/step-{step:08}/{MARKER}"))
    assert mirror.finish(30) == []
    kept = [f"step-{step:08}" for step in (4, 8, 10)]
    assert marked(store) == kept
    assert store.names() == ["proofs", "run", *kept, "wanted"]
    assert store.names("proofs") == ["run", *kept]


def test_the_last_checkpoint_there_is_never_pruned(tmp_path: Path):
    run = make_run(tmp_path / "run", 2)
    mirror = Mirror(str(tmp_path / "mirror"), run, first=True, kept=lambda steps: [])
    assert mirror.finish(30) == []
    assert marked(open_store(str(tmp_path / "mirror"))) == ["step-00000002"]


def split(run: Path, nodes: list[Path], step: int) -> list[Path]:
    """A checkpoint of four parts, of which each of two nodes has every second one."""
    whole = make_checkpoint(run, step, parts=4)
    here = [node / "checkpoints" / whole.name for node in nodes]
    for number, folder in enumerate(here):
        folder.mkdir(parents=True)
        for name, content in contents(whole).items():
            if not name.startswith("part-") or int(name[5:10]) % 2 == number:
                (folder / name).write_bytes(content)
    return here


def test_two_nodes_send_what_each_has_and_the_marker_waits_for_both(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    url, nodes = s3.bucket(), [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    store = open_store(url)
    mirrors = [Mirror(url, node, first=node.name == "a", kept=list) for node in nodes]
    one = split(tmp_path / "whole", nodes, 2)
    mirrors[0].offer(one[0])
    wait_for(lambda: len(store.names("step-00000002")) == 3)  # two parts, state.json
    assert marked(store) == []
    mirrors[1].offer(one[1])
    wait_for(lambda: marked(store) == ["step-00000002"])
    for name, content in contents(tmp_path / "whole" / "checkpoints" / "step-00000002").items():
        assert store.read(f"step-00000002/{name}") == content
    # the first node says which one it takes; the other has it though newer ones were offered
    two, three = (split(tmp_path / "whole", nodes, step) for step in (4, 6))
    mirrors[0].offer(two[0])
    wait_for(lambda: store.read("wanted") == b"step-00000004")
    for here in (two, three):
        mirrors[1].offer(here[1])
    wait_for(lambda: marked(store)[-1] == "step-00000004")
    mirrors[0].offer(three[0])
    assert [mirror.finish(30) for mirror in mirrors] == [[], []]
    assert marked(store)[-1] == "step-00000006"


def test_a_node_that_never_sends_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    nodes = [make_run(tmp_path / "a"), make_run(tmp_path / "b")]
    split(tmp_path / "whole", nodes, 2)
    mirror = Mirror(str(tmp_path / "mirror"), nodes[0], first=True, kept=list)
    wait_for(lambda: mirror._failures)
    assert mirror.finish(0)[0] == "step-00000002"
    assert "2 files of step-00000002 did not come from other nodes" in capsys.readouterr().err


def test_credentials_come_from_the_environment_and_lie_in_no_file(
    s3: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, url = make_run(tmp_path / "run", 2), s3.bucket()
    s3.stop()
    mirror = Mirror(url, run, first=True, kept=list)
    try:
        wait_for(lambda: mirror._failures)  # an error is said, too
    finally:
        s3.start()
    assert mirror.finish(30) == []
    store = open_store(url)
    there = {path: store.system.cat_file(path) for path in store.system.find(store.root)}
    assert len(there) > 10
    output = "".join(capsys.readouterr())
    assert output
    texts = [*contents(tmp_path).values(), *there.values(), output.encode(), "".join(s3.requests).encode()]
    assert not [text for text in texts for secret in (KEY, SECRET) if secret.encode() in text]
