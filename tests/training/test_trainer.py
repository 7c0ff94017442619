"""The loop with a toy engine: when it evaluates, saves, stops and gives up."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.running import Recorder
from velocity.batch import Batch
from velocity.config.sections import CheckpointConfig, SGDConfig
from velocity.data.collate import collate, whole
from velocity.data.encode import TokenSequence
from velocity.distributed import pulse
from velocity.distributed.comm import Ranks
from velocity.distributed.engine import Loss, StepStats, learn_one_by_one
from velocity.distributed.flats import Flat, Span
from velocity.errors import InterruptedRun, JobError
from velocity.objectives.causal_lm import CausalLM
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy
from velocity.training.checkpoint import Checkpoints, TrainState
from velocity.training.deadline import Deadline
from velocity.training.trainer import Parts, Plan, Trainer


class ToyEngine:
    """A model of one number w: every label has log-probability w."""

    def __init__(self, bad_steps: tuple[int, ...] = ()) -> None:
        self.w = torch.tensor(-1.0, requires_grad=True)
        self.written = 0  # times that it was asked for its state
        self.gradients: list[float] = []
        self.bad_steps = bad_steps

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(batch.labels_BS != -100, self.w, 0.0)

    def train(self, mode: bool) -> None:
        pass

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, learning_rate: float) -> StepStats:
        assert self.w.grad is not None
        self.gradients.append(float(self.w.grad))
        self.w.grad = None
        return StepStats(abs(self.gradients[-1]), skipped=len(self.gradients) in self.bad_steps)

    def learn(
        self, objective: Any, batches: Sequence[Batch], units: int, learning_rate: float
    ) -> tuple[list[Loss], StepStats]:
        return learn_one_by_one(self, objective, batches, units, learning_rate)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        return value

    def any_rank(self, flag: bool) -> bool:
        return flag

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        self.written += not start
        yield [Flat(self.w.data, {}, [Span("w", (), None, 0, 0, 1)])]

    def refresh(self) -> None:
        pass

    @property
    def scaler(self) -> dict[str, Any]:
        return {}

    def weights(self) -> Mapping[str, Tensor]:
        return {"w": self.w.detach()}


def _batch(lengths: list[int]) -> Batch:
    import numpy as np

    rows = [
        [whole(TokenSequence(np.arange(n, dtype=np.int32), np.array([0] + [1] * (n - 1), dtype=np.uint8)))]
        for n in lengths
    ]
    return collate(rows, [f"data.jsonl:{n}" for n in lengths])


def _trainer(folder: Path, engine: ToyEngine, *, total: int = 4, **changes: Any) -> tuple[Trainer, Recorder]:
    recorder = Recorder()
    parts: dict[str, Any] = {
        "engine": engine,
        "objective": CausalLM(),
        "micro_batches": lambda step: [_batch([3, 5]), _batch([9])],
        "eval_sets": {"unseen": [_batch([4])]},
        "checkpoints": Checkpoints(folder, CheckpointConfig(keep=10, background=False), Ranks()),
        "callbacks": [recorder],
        "optimizer": SGDConfig(learning_rate=1.0, max_skipped=2),
        "stopping": lambda: False,
        "seed": lambda step: None,
        "measure": lambda rate: {},
    }
    return Trainer(Parts(**{**parts, **changes}), Plan(total, eval_every=3, checkpoint_every=2), TrainState()), recorder


def test_the_gradient_is_of_the_summed_loss_over_all_units(tmp_path: Path) -> None:
    engine = ToyEngine()
    trainer, recorder = _trainer(tmp_path, engine, total=1)
    trainer.run()
    # 2 + 4 + 8 labels, each with loss -w: the sum's gradient is -14, divided once by 14 units
    assert engine.gradients == pytest.approx([-1.0])
    assert recorder.lines[0]["loss"] == pytest.approx(1.0)
    assert recorder.lines[0]["tokens"] == 14


def test_it_evaluates_before_at_every_third_step_and_after_and_saves_at_every_second(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(), total=5)
    trainer.run()
    assert [step for step, _ in recorder.evaluations] == [0, 3, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


def test_metrics_are_summed_over_micro_batches_and_divided_once_by_the_units(tmp_path: Path) -> None:
    class WithMetrics(CausalLM):
        def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
            rows = torch.tensor(float(len(batch.lengths_B)))
            return LossOutput(super().__call__(policy, batch).total, {"rows": rows})

    trainer, recorder = _trainer(tmp_path, ToyEngine(), total=1, objective=WithMetrics())
    trainer.run()
    assert recorder.lines[0]["rows"] == pytest.approx(3 / 14)  # 2 + 1 rows, 14 labels


class Rows(CausalLM):
    """An objective whose units are rows; notes what it was prepared with, and when."""

    unit = "pairs"

    def __init__(self) -> None:
        self.heard: list[int] = []

    def units(self, batch: Batch) -> int:
        return len(batch.lengths_B)

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        self.heard.append(len(list(batches)))

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        self.heard.append(0)
        return super().__call__(policy, batch)


def test_a_loss_over_other_units_than_tokens_is_divided_by_those_and_both_are_told(tmp_path: Path) -> None:
    engine = ToyEngine()
    trainer, recorder = _trainer(tmp_path, engine, total=1, objective=Rows())
    trainer.run()
    # three rows with 2 + 4 + 8 labels, each with loss -w
    assert engine.gradients == pytest.approx([-14 / 3])
    assert recorder.lines[0]["loss"] == pytest.approx(14 / 3)
    assert (recorder.lines[0]["tokens"], recorder.lines[0]["pairs"]) == (14, 3)
    assert recorder.evaluations[0][1]["unseen"] == {"loss": 3.0, "pairs": 1}


def test_an_objective_sees_the_whole_global_batch_before_its_first_micro_batch_is_scored(tmp_path: Path) -> None:
    objective = Rows()
    trainer, _ = _trainer(tmp_path, ToyEngine(), total=2, objective=objective)
    trainer.run()
    # an evaluation of one batch, two steps of two, an evaluation
    assert objective.heard == [1, 0, 2, 0, 0, 2, 0, 0, 1, 0]


def test_what_takes_a_while_is_said_before(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(), total=2)
    trainer.run()
    assert recorder.phases == ["evaluating", "evaluating", "saving a checkpoint"]


def test_an_attempt_that_goes_on_does_not_evaluate_once_more(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(), total=2)
    trainer.run(evaluate_first=False)
    assert [step for step, _ in recorder.evaluations] == [2]


def test_a_skipped_step_is_counted_and_the_run_goes_on(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(bad_steps=(1, 3)))
    trainer.run()
    assert [line["skipped"] for line in recorder.lines] == [1, 1, 2, 2]
    assert trainer.state.skipped == 2
    assert trainer.state.skipped_in_a_row == 0


def test_too_many_skipped_steps_in_a_row_end_the_run_and_name_records(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(bad_steps=(2, 3)))
    with pytest.raises(JobError, match=r"not finite in 2 steps in a row, to 3") as caught:
        trainer.run()
    assert recorder.lines[-1]["step"] == 3, "the step that ends the run is written down, too"
    assert "data.jsonl:3" in str(caught.value)


class NotFinite(CausalLM):
    """An objective whose loss is not finite on micro-batches of one row."""

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        loss = super().__call__(policy, batch)
        return LossOutput(loss.total * float("nan")) if len(batch.lengths_B) == 1 else loss


def test_a_loss_that_is_not_finite_names_the_records_of_its_micro_batch(tmp_path: Path) -> None:
    engine = ToyEngine(bad_steps=(1, 2))
    trainer, recorder = _trainer(tmp_path, engine, objective=NotFinite(), eval_sets={})
    with pytest.raises(JobError, match="step 2: the loss was not finite on data.jsonl:9\n"):
        trainer.run()
    told: list[Any] = [line["not_finite"] for line in recorder.lines]
    assert told == [["data.jsonl:9"]] * 2, "the other micro-batch's loss was finite"


def test_a_finite_loss_names_nothing(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(), total=1)
    trainer.run()
    assert "not_finite" not in recorder.lines[0]


def test_whoever_looks_at_the_rank_sees_its_step_and_the_records_of_its_micro_batch(tmp_path: Path) -> None:
    seen: list[tuple[Any, ...]] = []

    class Looking(CausalLM):
        def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
            doing = pulse.doing()
            seen.append((doing.step, doing.what, doing.records))
            return super().__call__(policy, batch)

    trainer, _ = _trainer(tmp_path, ToyEngine(), total=1, objective=Looking(), eval_sets={})
    trainer.run()
    learning = (1, "learning", ("data.jsonl:3", "data.jsonl:5")), (1, "learning", ("data.jsonl:9",))
    assert seen == list(learning)
    assert (pulse.doing().what, pulse.doing().busy) == ("saving a checkpoint", True)


def test_a_stop_during_an_evaluation_saves_and_leaves_that_evaluation_out(tmp_path: Path) -> None:
    # asked before steps 1 to 3 and before the batch of each evaluation: the fifth time is the evaluation behind step 3
    asked = iter([False] * 4 + [True])
    trainer, recorder = _trainer(tmp_path, ToyEngine(), stopping=lambda: next(asked))
    with pytest.raises(InterruptedRun, match="after step 3"):
        trainer.run()
    assert [step for step, _ in recorder.evaluations] == [0]
    assert (tmp_path / "step-00000003" / "COMMITTED").exists()


def test_a_stop_saves_before_the_next_step(tmp_path: Path) -> None:
    asked = iter([False, False, True])  # at the evaluation before, at the first and at the second step
    trainer, recorder = _trainer(tmp_path, ToyEngine(), stopping=lambda: next(asked))
    with pytest.raises(InterruptedRun, match="after step 1"):
        trainer.run()
    assert len(recorder.lines) == 1
    assert (tmp_path / "step-00000001" / "COMMITTED").exists()


def test_a_stop_says_after_which_step_and_how_long_the_save_took(tmp_path: Path) -> None:
    asked = iter([False, False, True])
    trainer, recorder = _trainer(tmp_path, ToyEngine(), stopping=lambda: next(asked))
    with pytest.raises(InterruptedRun) as caught:
        trainer.run()
    what, fix = str(caught.value).splitlines()
    assert re.fullmatch(r"stopped after step 1, and saved in \d+\.\d s", what)
    assert fix == "  fix:   run the same command to go on"
    assert recorder.phases[-1] == "saving a checkpoint"


def test_a_stop_before_the_first_step_saves_nothing_because_there_is_nothing(tmp_path: Path) -> None:
    trainer, recorder = _trainer(tmp_path, ToyEngine(), stopping=lambda: True)
    with pytest.raises(InterruptedRun, match="^stopped before the first step\n"):
        trainer.run()
    assert (recorder.lines, list(tmp_path.iterdir())) == ([], [])


def test_a_stop_that_cannot_save_does_not_say_that_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    asked = iter([False, False, True])
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints", CheckpointConfig(), Ranks())
    trainer, _ = _trainer(tmp_path, ToyEngine(), stopping=lambda: next(asked), checkpoints=checkpoints)
    with pytest.raises(InterruptedRun, match="^stopped after step 1, but could not save: it goes on behind step 0\n"):
        trainer.run()
    assert "no checkpoint of step 1" in capsys.readouterr().err


def test_a_run_whose_time_is_nearly_up_saves_while_there_is_time_for_one_more_step(tmp_path: Path) -> None:
    now = [0.0]
    deadline = Deadline(100, 0, lambda: now[0])

    def micro_batches(step: int) -> list[Batch]:
        now[0] = 26.0 * step  # asked at 0, 26, 52 and 78; the first save comes after the second step
        return [_batch([3])]

    trainer, _ = _trainer(
        tmp_path, ToyEngine(), total=9, micro_batches=micro_batches, deadline=deadline,
        stopping=lambda: deadline.is_near, checkpoints=Slow(tmp_path),
    )  # fmt: skip
    with pytest.raises(InterruptedRun, match="^stopped after step 3, and saved in .* s; duration.wall_clock is nearly"):
        trainer.run()
    assert (tmp_path / "step-00000003" / "COMMITTED").exists()


class Slow(Checkpoints):
    """Whose first save took 12 s, as it says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CheckpointConfig(background=False), Ranks())

    def save(self, *given: Any, **named: Any) -> None:
        super().save(*given, **named)
        self.save_seconds = 12.0  # near from 100 - 1.2 x 12 - 10 = 75.6 on
