"""A machine that has nothing goes on from the mirror alone, with what is whole there."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints.mirrored import Server, contents, make_checkpoint
from velocity.checkpoints import restore as module
from velocity.checkpoints.commit import MANIFEST, MARKER, committed, damage, entry_of, remove
from velocity.checkpoints.mirror import Mirror
from velocity.checkpoints.restore import check, restore
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import UserError
from velocity.runs.folder import RunFolder

METRICS = '{"step": 2, "loss": 2.0}\n{"step": 4, "loss": 1.5}\n'
JOB = """task: sft
model: base
output: {output}
data: {{train: {train}}}
batch: {{rows: 4}}
optimizer: {{learning_rate: 1.0e-3}}
duration: {{steps: 8}}
"""


def claimed(path: Path, *, train: str = "train.jsonl", inputs: str = "0123") -> Path:
    """A run folder as it is before its ranks start: the job is written down, nothing is trained."""
    path.mkdir()
    job = path.with_suffix(".yaml")
    job.write_text(JOB.format(output=path, train=train))
    (path / "job.yaml").write_text(render(load_job(job, [])))
    (path / "plan.json").write_text(json.dumps({"of": str(path)}))
    RunFolder(path).begin(inputs)
    return path


def mirrored(tmp_path: Path, url: str, *steps: int) -> Path:
    """The folder of a run whose machine is lost, after its checkpoints went to the mirror one after the other."""
    run = claimed(tmp_path / "lost")
    (run / "metrics.jsonl").write_text(METRICS)
    (run / "deepspeed.json").write_text("{}")
    for step in steps:
        make_checkpoint(run, step)
        assert Mirror(url, run, first=True, kept=list).finish(60) == []
    return run


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_fresh_machine_gets_the_newest_checkpoint_and_the_metrics(s3: Server, tmp_path: Path):
    url = s3.bucket()
    lost, fresh = mirrored(tmp_path, url, 2, 4), claimed(tmp_path / "fresh")
    own = contents(fresh)
    assert restore(url, fresh) == 4
    assert contents(fresh / "checkpoints") == {
        f"step-00000004/{name}": content for name, content in contents(lost / "checkpoints" / "step-00000004").items()
    }
    assert damage(fresh / "checkpoints" / "step-00000004") is None
    assert (fresh / "metrics.jsonl").read_text() == METRICS
    assert (fresh / "deepspeed.json").read_text() == "{}"
    assert {name: content for name, content in contents(fresh).items() if name in own} == own, "what it had stays"
    s3.requests.clear()
    assert restore(url, fresh) is None
    assert not [line for line in s3.requests if "safetensors" in line]
    assert Mirror(url, fresh, first=True, kept=list).finish(60) == []
    assert s3.sent(r"step-[^ ?]*") == [], "all of it is there"


def test_an_empty_mirror_gives_nothing(tmp_path: Path, s3: Server):
    for url in (str(tmp_path / "mirror"), s3.bucket()):
        check(url, fresh=True)
        assert restore(url, claimed(tmp_path / url.split("/")[2])) is None


def test_what_is_newer_here_stays(tmp_path: Path):
    url = str(tmp_path / "mirror")
    mirrored(tmp_path, url, 2)
    run = claimed(tmp_path / "run")
    make_checkpoint(run, 4)
    assert restore(url, run) is None
    assert restore(url, run, have=0) == 2, "unless the caller knows that it is not good"


def test_what_is_older_here_is_joined_by_the_newer_one(tmp_path: Path):
    url = str(tmp_path / "mirror")
    lost, run = mirrored(tmp_path, url, 2, 4), claimed(tmp_path / "run")
    shutil.copytree(lost / "checkpoints" / "step-00000002", run / "checkpoints" / "step-00000002")
    assert restore(url, run) == 4
    assert [folder.name for folder in committed(run / "checkpoints")] == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("name", ["part-00001.safetensors", MANIFEST, MARKER])
def test_a_flipped_bit_is_found_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
):
    mirror = tmp_path / "mirror"
    mirrored(tmp_path, str(mirror), 2, 4)
    flip(mirror / "step-00000004" / name)
    run = claimed(tmp_path / "run")
    assert restore(str(mirror), run) == 2
    said = "part-00001.safetensors has changed since" if name.startswith("part") else f"{MANIFEST} is not the one"
    error = capsys.readouterr().err
    assert f"WARNING: step-00000004 at {mirror} is not whole: " in error
    assert said in error
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000002"]


def test_a_flipped_bit_that_the_store_did_not_see_is_sent_again_when_the_run_comes_there(tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirrored(tmp_path, str(mirror), 2, 4)
    part = mirror / "step-00000004" / "part-00001.safetensors"
    before = part.stat()
    flip(part)
    os.utime(part, ns=(before.st_atime_ns, before.st_mtime_ns))  # as a disk loses a bit
    run = claimed(tmp_path / "run")
    assert restore(str(mirror), run) == 2
    make_checkpoint(run, 4)
    assert Mirror(str(mirror), run, first=True, kept=list).finish(60) == []
    assert damage(mirror / "step-00000004") is None


def test_a_checkpoint_without_its_marker_does_not_exist(tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirrored(tmp_path, str(mirror), 2, 4)
    (mirror / "step-00000004" / MARKER).unlink()
    assert restore(str(mirror), claimed(tmp_path / "run")) == 2


def test_where_none_is_whole_the_run_does_not_begin_anew(tmp_path: Path):
    mirror = tmp_path / "mirror"
    mirrored(tmp_path, str(mirror), 2)
    (mirror / "step-00000002" / "part-00000.safetensors").unlink()
    with pytest.raises(UserError, match="no checkpoint at the mirror .* is whole"):
        restore(str(mirror), claimed(tmp_path / "run"))


def test_a_damaged_one_here_is_replaced_by_the_mirrors(tmp_path: Path):
    url = str(tmp_path / "mirror")
    run = mirrored(tmp_path, url, 2, 4)
    flip(run / "checkpoints" / "step-00000004" / "part-00000.safetensors")
    assert restore(url, run, have=2) == 4
    assert damage(run / "checkpoints" / "step-00000004") is None


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"train": "other.jsonl"}, "data.train.0.path: train.jsonl → other.jsonl"), ({"inputs": "4567"}, "the content")],
)
def test_another_jobs_run_is_refused(tmp_path: Path, changed: dict[str, Any], said: str):
    url = str(tmp_path / "mirror")
    mirrored(tmp_path, url, 2)
    run = claimed(tmp_path / "run", **changed)
    with pytest.raises(UserError, match="the mirror holds the run of another job") as refused:
        restore(url, run)
    assert said in str(refused.value)
    assert not (run / "checkpoints").exists()


def test_a_fresh_run_is_refused_a_mirror_that_holds_one(tmp_path: Path):
    url = str(tmp_path / "mirror")
    mirrored(tmp_path, url, 2)
    check(url)
    with pytest.raises(UserError, match="its newest checkpoint is of step 2"):
        check(url, fresh=True)


@pytest.mark.parametrize("name", ["../../job.yaml", "/etc/passwd", "a/../../b"])
def test_a_manifest_that_names_files_elsewhere_is_not_followed(tmp_path: Path, name: str):
    mirror = tmp_path / "mirror"
    mirrored(tmp_path, str(mirror), 2)
    manifest = mirror / "step-00000002" / MANIFEST
    manifest.write_text(manifest.read_text().replace("state.json", name))
    (mirror / "step-00000002" / MARKER).write_text(entry_of(manifest).sha256 + "\n")
    run = claimed(tmp_path / "run")
    with pytest.raises(UserError, match="no checkpoint at the mirror"):
        restore(str(mirror), run)
    assert not list(run.glob("checkpoints/step-*"))


def test_a_fetch_that_was_cut_off_goes_on(s3: Server, tmp_path: Path):
    url = s3.bucket()
    lost, run = mirrored(tmp_path, url, 2), claimed(tmp_path / "run")
    torn = run / "checkpoints" / ".step-00000002.tmp"
    torn.mkdir(parents=True)
    whole = lost / "checkpoints" / "step-00000002"
    shutil.copy(whole / "part-00000.safetensors", torn)
    (torn / "part-00001.safetensors").write_bytes(b"torn")
    s3.requests.clear()
    assert restore(url, run) == 2
    assert contents(run / "checkpoints" / "step-00000002") == contents(whole)
    fetched = [line for line in s3.requests if line.startswith("GET") and line.endswith("safetensors")]
    assert [line.rpartition("/")[2] for line in fetched] == ["part-00001.safetensors"]


def test_a_mirror_that_does_not_answer_ends_a_run_only_where_nothing_is_here(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(module, "TRIES", 2)
    url = s3.bucket()
    run = mirrored(tmp_path, url, 2)
    s3.stop()
    try:
        assert restore(url, run) is None
        assert f"WARNING: cannot read the mirror {url}: EndpointConnectionError" in capsys.readouterr().err
        remove(run / "checkpoints" / "step-00000002")
        with pytest.raises(UserError, match="cannot read the mirror"):
            restore(url, run)
        with pytest.raises(UserError, match="check the address, the network and your credentials"):
            check(url)
    finally:
        s3.start()
    assert restore(url, run) == 2


def test_a_bucket_that_does_not_exist_is_refused(s3: Server):
    with pytest.raises(UserError, match="cannot read the mirror s3://absent/run: FileNotFoundError"):
        check("s3://absent/run")
