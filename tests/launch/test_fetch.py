"""A run comes back whole, as it was proven at its mirror, and into no other run's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.mirrored import contents
from tests.making import write_job
from tests.sagemaker_account import REGION, Account, account
from velocity.checkpoints.commit import entry_of
from velocity.checkpoints.mirror import send_records
from velocity.checkpoints.store import Store, open_store
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import JobError, UserError
from velocity.launch.fetch import fetch_run
from velocity.runs.folder import RunFolder


@pytest.fixture(name="aws", scope="module")
def _aws() -> Iterator[Account]:
    with account() as made:
        made.client("s3").create_bucket(Bucket="runs", CreateBucketConfiguration={"LocationConstraint": REGION})
        yield made


@pytest.fixture(name="store")
def _store(aws: Account, tmp_path: Path) -> Store:
    return open_store(f"s3://runs/{tmp_path.name}")


def finished(folder: Path, *, state: str = "complete", seed: int = 0) -> RunFolder:
    """A run with a result, as the container leaves it."""
    run = RunFolder(folder)
    (run.model / "extra").mkdir(parents=True)
    run.job.write_text(render(load_job(write_job(folder.parent / f"{folder.name}.yaml", seed=seed, output="runs/sft"))))
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n')
    (run.model / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (run.model / "extra" / "notes.txt").write_text("notes")
    run.set_status(state)
    return run


def test_a_run_comes_back_as_it_was(store: Store, tmp_path: Path):
    there = finished(tmp_path / "there")
    send_records(store, there.path)
    said: list[str] = []
    assert fetch_run(store.url, str(tmp_path / "here"), said.append) == 5
    assert contents(tmp_path / "here") == contents(there.path)
    assert "not there yet" not in said[0]


def test_it_may_come_back_again_and_what_was_cut_off_is_made_whole(store: Store, tmp_path: Path):
    there, here = finished(tmp_path / "there"), tmp_path / "here"
    send_records(store, there.path)
    fetch_run(store.url, str(here), print)
    (here / "model" / "model.safetensors").write_bytes(b"torn")
    (here / "status.json").unlink()
    fetch_run(store.url, str(here), print)
    assert contents(here) == contents(there.path)


def test_of_a_run_that_goes_on_its_records_come_and_no_half_of_a_result(store: Store, tmp_path: Path):
    there, said = finished(tmp_path / "there", state="running"), list[str]()
    send_records(store, there.path)
    store.put(
        there.model / "model.safetensors", "run/model/model.safetensors", entry_of(there.model / "model.safetensors")
    )
    fetch_run(store.url, str(tmp_path / "here"), said.append)
    assert set(contents(tmp_path / "here")) == {"job.yaml", "metrics.jsonl", "status.json"}
    assert "its result is not there yet" in said[0]


def test_another_run_is_not_overwritten(store: Store, tmp_path: Path):
    send_records(store, finished(tmp_path / "there").path)
    mine = finished(tmp_path / "mine", seed=7)
    before = contents(mine.path)
    with pytest.raises(UserError, match="the folder holds another run: seed: 7 → 0"):
        fetch_run(store.url, str(mine.path), print)
    assert contents(mine.path) == before


def test_a_folder_of_something_else_is_not_touched(store: Store, tmp_path: Path):
    send_records(store, finished(tmp_path / "there").path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="something else than a run"):
        fetch_run(store.url, str(tmp_path / "here"), print)
    assert contents(tmp_path / "here") == {"thesis.txt": b"mine"}


def test_a_run_that_somebody_writes_is_not_fetched_into(store: Store, tmp_path: Path):
    send_records(store, finished(tmp_path / "there").path)
    with RunFolder(tmp_path / "here").owned(), pytest.raises(UserError, match="the run folder is held by"):
        fetch_run(store.url, str(tmp_path / "here"), print)


def test_nothing_is_told_as_nothing(store: Store, tmp_path: Path):
    with pytest.raises(UserError, match="there is nothing of a run at s3://runs/"):
        fetch_run(store.url, str(tmp_path / "here"), print)
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("content", [b"changed", bytes(range(256)) * 40 + b"!", b"\0" * 256 * 40])
def test_a_file_that_changed_at_the_mirror_is_told(
    store: Store, tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("velocity.checkpoints.results.PAUSE_SECONDS", 0.0)
    send_records(store, finished(tmp_path / "there").path)
    store.write("run/model/model.safetensors", content)
    with pytest.raises(JobError, match=r"model/model\.safetensors does not come as it was sent"):
        fetch_run(store.url, str(tmp_path / "here"), print)
    assert not (tmp_path / "here" / "status.json").exists(), "it is not taken for complete"


def test_a_name_that_leads_out_of_the_folder_is_refused(store: Store, tmp_path: Path):
    send_records(store, finished(tmp_path / "there").path)
    store.write("proofs/run/extra/../../outside.json", b"{}")
    with pytest.raises(UserError, match="would lie outside"):
        fetch_run(store.url, str(tmp_path / "here"), print)
