"""Which checkpoints there are, which are kept, which one a run goes on from: real files, and a toy for an engine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_trainer import ToyEngine
from velocity.checkpoints.commit import MARKER
from velocity.config.sections import CheckpointConfig
from velocity.distributed.comm import Ranks
from velocity.distributed.flats import Flat
from velocity.errors import JobError
from velocity.training.checkpoint import Checkpoints, Replay, TrainState


class FailingEngine(ToyEngine):
    """Has a state that cannot be read to its end."""

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        yield from super().flats(start=start)
        raise OSError("the disk is full")


def made(folder: Path, **config: Any) -> Checkpoints:
    """The checkpoints of a folder, written before `save` returns."""
    return Checkpoints(folder, CheckpointConfig(**{"keep": 10, "background": False, **config}), Ranks())


def engine_at(value: float) -> ToyEngine:
    engine = ToyEngine()
    engine.w.data = torch.tensor(float(value))
    return engine


def saved(folder: Path, *steps: int, **config: Any) -> Checkpoints:
    """A checkpoint for each step, whose weight is that number."""
    checkpoints = made(folder, **config)
    for step in steps:
        checkpoints.save(engine_at(step), TrainState(step=step, skipped=1), wait=True)
    return checkpoints


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.iterdir())


@pytest.mark.parametrize("background", [True, False])
def test_the_newest_is_loaded_with_its_state(tmp_path: Path, background: bool) -> None:
    saved(tmp_path, 5, 10, background=background)
    engine = ToyEngine()
    assert made(tmp_path).resume(engine) == TrainState(step=10, skipped=1)
    assert float(engine.w.detach()) == 10.0


def test_a_save_in_the_background_holds_what_there_was_when_it_began(tmp_path: Path) -> None:
    checkpoints, engine = made(tmp_path, background=True), engine_at(3.0)
    checkpoints.save(engine, TrainState(step=1))
    engine.w.data.fill_(4.0)  # training goes on
    checkpoints.save(engine, TrainState(step=2))
    engine.w.data.fill_(5.0)
    checkpoints.finish()
    assert made(tmp_path).resume(engine).step == 2 and float(engine.w.detach()) == 4.0
    (tmp_path / "step-00000002" / MARKER).unlink()
    assert made(tmp_path).resume(engine).step == 1 and float(engine.w.detach()) == 3.0


def test_one_without_its_marker_does_not_exist(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    (tmp_path / "step-00000010" / MARKER).unlink()
    assert checkpoints.resume(ToyEngine()).step == 5


def test_a_save_that_fails_is_said_and_leaves_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = saved(tmp_path, 5)
    checkpoints.save(FailingEngine(), TrainState(step=10))
    checkpoints.finish()
    said = capsys.readouterr().err
    assert "no checkpoint of step 10: the disk is full (rank 0)" in said and "the last good one is of step 5" in said
    assert steps_in(tmp_path) == [5], "what was written of it is gone"
    assert [report.trouble for report in checkpoints.reports()] == ["", "the disk is full (rank 0)"]
    checkpoints.save(engine_at(10.0), TrainState(step=10))
    assert checkpoints.resume(ToyEngine()).step == 10


def test_a_folder_that_cannot_be_written_is_said_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    checkpoints = made(tmp_path / "checkpoints")
    checkpoints.save(ToyEngine(), TrainState(step=1))
    assert "no checkpoint of step 1" in capsys.readouterr().err and checkpoints.reports()[0].trouble


def test_a_stop_behind_a_save_leaves_the_committed_one_alone(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    before = (tmp_path / "step-00000005" / MARKER).stat().st_ino
    checkpoints.save(FailingEngine(), TrainState(step=5))  # it would fail if it wrote
    assert (tmp_path / "step-00000005" / MARKER).stat().st_ino == before


def test_a_fresh_run_starts_at_step_0(tmp_path: Path) -> None:
    engine = engine_at(7.0)
    assert made(tmp_path).resume(engine) == TrainState()
    assert float(engine.w.detach()) == 7.0


def test_what_of_a_save_is_reported(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5)
    (report,) = checkpoints.reports()
    sizes = sum(path.stat().st_size for path in (tmp_path / "step-00000005").glob("[ps][at]*"))
    assert report.step == 5 and report.bytes == sizes
    assert 0 < report.seconds == checkpoints.save_seconds and report.blocked_seconds > 0
    assert not checkpoints.reports(), "each is told once"


def damage(folder: Path, how: str) -> None:
    """The checkpoint is broken."""
    part = folder / "part-00000-000.safetensors"
    content = bytearray(part.read_bytes())
    if how == "flipped":
        content[-1] ^= 1
        part.write_bytes(content)
    elif how == "torn":
        part.write_bytes(content[:-2])
    elif how == "gone":
        part.unlink()
    elif how == "manifest":
        (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    elif how == "state":
        (folder / "state.json").write_text("{}")
    elif how == "marker":
        (folder / MARKER).write_bytes(b"")


DAMAGES = {
    "flipped": "has changed since it was written",
    "torn": "bytes of",
    "gone": "is missing",
    "manifest": "not the one that was committed",
    "state": "state.json has",
    "marker": "not the one that was committed",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_one_is_said_and_the_one_before_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    damage(tmp_path / "step-00000010", how)
    engine = ToyEngine()
    assert checkpoints.resume(engine).step == 5 and float(engine.w.detach()) == 5.0
    said = capsys.readouterr().err
    assert "step-00000010 is not whole" in said and DAMAGES[how] in said and "the one before is taken" in said
    checkpoints.save(engine_at(11.0), TrainState(step=10), wait=True)
    assert checkpoints.resume(engine).step == 10 and float(engine.w.detach()) == 11.0, "it is saved again"


def test_what_a_save_or_a_removal_that_was_cut_off_left_is_gone_after_a_resume(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    (tmp_path / "step-00000005" / MARKER).unlink()
    (tmp_path / ".step-00000015.tmp").mkdir()
    assert checkpoints.resume(ToyEngine()).step == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000010"]


def test_where_none_is_whole_nothing_is_begun_anew_in_silence(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 5, 10)
    for name in ("step-00000005", "step-00000010"):
        damage(tmp_path / name, "torn")
    with pytest.raises(JobError, match="no checkpoint is whole"):
        checkpoints.resume(ToyEngine())


def test_those_that_are_not_kept_are_gone_and_the_losses_of_a_set_decide_too(tmp_path: Path) -> None:
    checkpoints = made(tmp_path, keep=1, best="unseen")
    for step, loss in enumerate([5.0, 2.0, 4.0, 3.0], start=1):
        checkpoints.save(ToyEngine(), TrainState(step=step), {"unseen": loss, "general": -loss}, wait=True)
    assert steps_in(tmp_path) == [2, 4]


def test_a_later_attempt_knows_the_best_of_those_before(tmp_path: Path) -> None:
    first = made(tmp_path, keep=1, best="unseen")
    first.save(ToyEngine(), TrainState(step=1), {"unseen": 1.0}, wait=True)
    later = Checkpoints(tmp_path, CheckpointConfig(keep=1, best="unseen"), Ranks(), losses={1: 1.0})
    for step in (2, 3):
        later.save(ToyEngine(), TrainState(step=step), {"unseen": 2.0}, wait=True)
    assert steps_in(tmp_path) == [1, 3]


def test_pruning_leaves_the_older_ones_where_the_newest_is_torn(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2)
    checkpoints.config = CheckpointConfig(keep=1)
    damage(tmp_path / "step-00000002", "torn")
    checkpoints._prune({2})
    assert steps_in(tmp_path) == [1, 2]


def test_the_held_batch_must_give_the_loss_that_was_saved(tmp_path: Path) -> None:
    loss = 2.5
    config = CheckpointConfig(background=False)
    checkpoints = Checkpoints(tmp_path, config, Ranks(), replay=Replay(lambda: loss, tolerance=1e-4))
    checkpoints.save(ToyEngine(), TrainState(step=1))
    loss = 2.5002  # within 1e-4 of 2.5
    assert checkpoints.resume(ToyEngine()).step == 1
    for other in (2.51, float("nan")):
        loss = other
        with pytest.raises(JobError, match=r"the held batch's loss is (2.51|nan).*; 2.500000 was saved"):
            checkpoints.resume(ToyEngine())


def test_each_new_one_is_told_once_when_it_is_committed(tmp_path: Path) -> None:
    heard: list[str] = []
    config = CheckpointConfig(background=False)
    checkpoints = Checkpoints(tmp_path, config, Ranks(), committed=lambda folder: heard.append(folder.name))
    checkpoints.save(ToyEngine(), TrainState(step=1))
    checkpoints.finish()
    checkpoints.save(FailingEngine(), TrainState(step=2))
    checkpoints.finish()
    assert heard == ["step-00000001"]
