from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.test_trainer import ToyEngine
from velocity.errors import UserError
from velocity.training.checkpoint import MARKER, Checkpoints, TrainState


class NotingEngine(ToyEngine):
    """Remembers what it was told to load; may fail half way through a save."""

    def __init__(self, *, fails: bool = False) -> None:
        super().__init__()
        self.loaded: list[Path] = []
        self.fails = fails

    def save(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "part").write_text("half")
        if self.fails:
            raise OSError("the disk is full")

    def load(self, folder: Path) -> None:
        self.loaded.append(folder)


def _saved(folder: Path, *steps: int, keep: int = 10) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep, first=True)
    for step in steps:
        checkpoints.save(NotingEngine(), TrainState(step=step, skipped=1))
    return checkpoints


def test_the_newest_committed_checkpoint_is_loaded(tmp_path: Path) -> None:
    checkpoints, engine = _saved(tmp_path, 5, 10), NotingEngine()
    assert checkpoints.resume(engine) == TrainState(step=10, skipped=1)
    assert engine.loaded == [tmp_path / "step-00000010" / "engine"]


def test_a_checkpoint_without_its_marker_does_not_exist(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 5, 10)
    (tmp_path / "step-00000010" / MARKER).unlink()
    assert checkpoints.resume(NotingEngine()).step == 5


def test_a_save_that_is_cut_off_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 5)
    with pytest.raises(OSError, match="full"):
        checkpoints.save(NotingEngine(fails=True), TrainState(step=10))
    assert checkpoints.resume(NotingEngine()).step == 5
    checkpoints.save(NotingEngine(), TrainState(step=10))
    assert checkpoints.resume(NotingEngine()).step == 10


def test_a_stop_behind_a_save_leaves_the_committed_checkpoint_alone(tmp_path: Path) -> None:
    checkpoints = _saved(tmp_path, 5)
    before = (tmp_path / "step-00000005" / MARKER).stat().st_ino
    checkpoints.save(NotingEngine(fails=True), TrainState(step=5))  # it would fail if it wrote
    assert (tmp_path / "step-00000005" / MARKER).stat().st_ino == before


def test_a_fresh_run_starts_at_step_0(tmp_path: Path) -> None:
    engine = NotingEngine()
    assert Checkpoints(tmp_path, 3, first=True).resume(engine) == TrainState()
    assert engine.loaded == []


def test_a_checkpoint_that_was_saved_another_way_is_refused_before_the_engine_sees_it(tmp_path: Path) -> None:
    Checkpoints(tmp_path, 3, first=True, layout="ZeRO 3, bf16").save(NotingEngine(), TrainState(step=5))
    engine = NotingEngine()
    with pytest.raises(UserError, match="is of ZeRO 3, bf16, and does not load with ZeRO 3, fp32"):
        Checkpoints(tmp_path, 3, first=True, layout="ZeRO 3, fp32").resume(engine)
    assert engine.loaded == []
    assert Checkpoints(tmp_path, 3, first=True, layout="ZeRO 3, bf16").resume(engine).step == 5


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    _saved(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]
