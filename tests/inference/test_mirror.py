"""Finished rows reach the mirror as they are finished, and come back to a machine that has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.generating import write_generate_job
from velocity.checkpoints import restore, results
from velocity.checkpoints.mirror import RESULT
from velocity.checkpoints.store import open_store
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import JobError, UserError
from velocity.inference import mirror as module
from velocity.inference.mirror import ShardMirror, is_finished, send_result


def a_run(base: Path, name: str, *shards: int, inputs: str = "a") -> Path:
    """A run folder with these finished shards."""
    folder = base / name
    job = load_job(write_generate_job(base / "job.yaml", {"output": "run"}))
    (folder / "shards").mkdir(parents=True)
    (folder / "job.yaml").write_text(render(job))
    (folder / "status.json").write_text(json.dumps({"state": "running", "inputs": inputs}))
    for shard in shards:
        shard_of(folder, shard).write_text(f"rows of {shard}\n")
    return folder


def shard_of(run: Path, shard: int) -> Path:
    return run / "shards" / f"{shard:08}.jsonl"


def sent(run: Path, url: str, *shards: int) -> bool:
    mirror = ShardMirror(url, run, first=True)
    for shard in shards:
        mirror.offer(shard_of(run, shard))
    return mirror.finish(30)


def test_what_is_offered_comes_back_to_another_machine_and_what_is_there_stays(tmp_path: Path):
    run, other, url = a_run(tmp_path, "run", 1, 2), a_run(tmp_path, "other", 2), str(tmp_path / "mirror")
    shard_of(other, 2).write_text("its own\n")
    assert sent(run, url, 1, 2)
    assert restore.fetch_shards(url, other) == 1
    assert shard_of(other, 1).read_text() == "rows of 1\n"
    assert shard_of(other, 2).read_text() == "its own\n"


def test_a_shard_that_was_altered_at_the_mirror_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, other, url = a_run(tmp_path, "run", 1), a_run(tmp_path, "other"), tmp_path / "mirror"
    assert sent(run, str(url), 1)
    shard_of(url, 1).write_text("rows of 7\n")
    assert restore.fetch_shards(str(url), other) == 0
    assert not shard_of(other, 1).exists()
    assert "its rows are done again" in capsys.readouterr().err


def test_the_rows_of_other_inputs_are_refused(tmp_path: Path):
    run, other, url = (
        a_run(tmp_path, "run", 1),
        a_run(tmp_path, "other", inputs="b"),
        str(tmp_path / "mirror"),
    )
    assert sent(run, url, 1)
    with pytest.raises(UserError, match="the mirror holds the run of another job"):
        restore.fetch_shards(url, other)


def test_a_complete_run_has_its_completions_there_in_place_of_shards(tmp_path: Path):
    run, url = a_run(tmp_path, "run", 1), str(tmp_path / "mirror")
    assert sent(run, url, 1) and not is_finished(url)
    (run / "completions.jsonl").write_text("all rows\n")
    (run / "status.json").write_text(json.dumps({"state": "complete", "inputs": "a"}))
    shutil.copytree(tmp_path / "mirror" / "shards", tmp_path / "kept")
    send_result(url, run)
    assert is_finished(url)
    assert open_store(url).names("shards") == []
    shutil.copytree(tmp_path / "kept", tmp_path / "mirror" / "shards")
    assert not is_finished(url), "it was killed between the two"
    fetched = tmp_path / "elsewhere" / "run"
    assert results.fetch_result(url, fetched)
    assert (fetched / "completions.jsonl").read_text() == "all rows\n"
    assert json.loads((fetched / "status.json").read_text())["state"] == "complete"


def test_there_is_no_result_before_the_run_is_complete(tmp_path: Path):
    run, url = a_run(tmp_path, "run", 1), str(tmp_path / "mirror")
    assert sent(run, url, 1)
    assert not results.fetch_result(url, tmp_path / "elsewhere")


def test_a_result_that_was_altered_or_is_not_all_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run, url = a_run(tmp_path, "run"), tmp_path / "mirror"
    (run / "completions.jsonl").write_text("all rows\n")
    (run / "status.json").write_text(json.dumps({"state": "complete", "inputs": "a"}))
    send_result(str(url), run)
    (url / "run" / "completions.jsonl").write_text("no rows!\n")
    monkeypatch.setattr(results, "PAUSE_SECONDS", 0.0)
    with pytest.raises(JobError, match="completions.jsonl has changed"):
        results.fetch_result(str(url), tmp_path / "elsewhere")
    open_store(str(url)).write(RESULT, json.dumps({"../out": {"size": 1, "sha256": "0"}}).encode())
    with pytest.raises(JobError, match=r"the mirror has lost \.\./out"):
        results.fetch_result(str(url), tmp_path / "elsewhere")


def test_where_the_mirror_does_not_answer_the_job_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def closed(url: str) -> None:
        raise ConnectionError("closed")

    monkeypatch.setattr(module, "open_store", closed)
    mirror = ShardMirror("s3://bucket/run", a_run(tmp_path, "run", 1), first=True)
    mirror.offer(shard_of(tmp_path / "run", 1))
    assert not mirror.finish(2)
    said = capsys.readouterr().err
    assert "nothing reaches the mirror s3://bucket/run: closed; the job goes on" in said
    assert "not all finished rows are at s3://bucket/run: ConnectionError: closed" in said
