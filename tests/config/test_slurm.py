"""What a launch section of Slurm can say, and what of it cannot be meant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.making import write_job
from velocity.config.load import load_job
from velocity.config.slurm import as_slurm, seconds
from velocity.errors import UserError


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("90", 5400), ("90:30", 5430), ("12:00:00", 43200), ("2-12", 216000), ("2-12:30", 217800), ("1-0:0:5", 86405),
        ("12h", 43200), ("1h30m", 5400), ("2d", 172800), ("UNLIMITED", None), ("infinite", None),
    ],
)  # fmt: skip
def test_a_limit_is_read_as_slurm_reads_it_and_as_durations_are_written(time: str, expected: float | None):
    assert seconds(time) == expected
    assert seconds(as_slurm(time)) == expected
    assert re.fullmatch(r"[\d:-]+|UNLIMITED|infinite", as_slurm(time))


@pytest.mark.parametrize(
    ("launch", "says"),
    [
        ({"time": 43200}, "launch.time: a number says no unit, and YAML reads 12:00:00 as one"),
        ({"time": "soon"}, "launch.time: not a time"),
        ({"time": "4m"}, "launch: warning_seconds=300 leaves nothing of time=4m to work in"),
        ({"warning_seconds": 70000}, "launch.warning_seconds: "),
        ({"partition": "gpu\n#SBATCH --wrap"}, "launch.partition: "),
        ({"options": ["--nodes=4"]}, "launch.options: --nodes=4 is Velocity's to set"),
        ({"options": ["-t 5"]}, "launch.options: -t 5 is Velocity's to set"),
        ({"options": ["-N4"]}, "launch.options: -N4 is Velocity's to set"),
        ({"options": ["exclusive"]}, "launch.options: 'exclusive' is no option of sbatch"),
        ({"options": ["--comment=a\n--wrap=b"]}, "launch.options: "),
    ],
)
def test_a_launch_section_that_cannot_be_meant_is_refused(tmp_path: Path, launch: dict[str, Any], says: str):
    with pytest.raises(UserError) as caught:
        load_job(write_job(tmp_path / "job.yaml", launch={"kind": "slurm", **launch}))
    (problem,) = caught.value.problems
    assert str(problem).startswith(says)
    assert "job.yaml:" in problem.where


def test_an_unquoted_time_of_day_in_yaml_is_not_taken_for_minutes(tmp_path: Path):
    file = write_job(tmp_path / "job.yaml", launch={"kind": "slurm", "time": "TIME"})
    file.write_text(file.read_text().replace("TIME", "12:00:00"))
    with pytest.raises(UserError, match="YAML reads 12:00:00 as one"):
        load_job(file)
