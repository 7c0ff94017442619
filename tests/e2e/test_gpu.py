"""`velocity run` on a GPU follows the plain engine on the processor, in every precision and stage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import step_lines, velocity
from tests.making import write_job
from tests.running import make_job, plain_engine, prepare_folder, take_steps
from velocity.distributed.comm import Ranks

STEPS = 6
# relative: fp32 differs by the order of sums, bf16 has 8 bits of mantissa and fp16 has 11
TOLERANCES = {"fp32": 1e-3, "bf16": 2e-2, "fp16": 5e-3}


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("precision", "zero"), [("fp32", 0), ("fp32", 3), ("bf16", 1), ("bf16", 2), ("bf16", 3), ("fp16", 2)]
)
def test_losses_on_a_gpu_are_those_of_the_plain_engine_to_rounding(tmp_path: Path, precision: str, zero: int) -> None:
    prepare_folder(tmp_path)
    job = write_job(
        tmp_path / "job.yaml",
        batch={"rows": 8, "micro": 2},
        duration={"steps": STEPS},
        strategy={"zero": zero, "precision": precision},
        launch={"processes": 1},
    )
    done = velocity("run", job)
    assert done.returncode == 0, done.stderr
    lines = step_lines(tmp_path / "run")
    assert [line["skipped"] for line in lines] == [0] * STEPS
    reference = make_job(tmp_path, {})
    expected = take_steps(reference, plain_engine(reference), Ranks(), STEPS)
    for line, (loss, _) in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(loss, rel=TOLERANCES[precision]), line
    assert all(line["memory_gib"] > 0 for line in lines)
