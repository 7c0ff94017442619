"""The script for sbatch: looked through once, the same since. tests/faults runs it on a real Slurm."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launch.slurm.submissions import FULL, NAME, ONE, submission
from velocity.launch.launcher import Submission
from velocity.launch.slurm.launcher import SlurmLauncher

GOLDEN = Path(__file__).with_name("golden")


@pytest.mark.parametrize(("name", "launch"), [("minimal", ONE), ("full", FULL)])
def test_the_script_is_the_one_that_was_looked_through(tmp_path: Path, name: str, launch: dict[str, Any]):
    overrides = ("seed=1", "data.train=[a b.jsonl, it's.jsonl]") if launch is FULL else ()
    (text,) = SlurmLauncher().render(submission(tmp_path, launch, overrides)).values()
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("VELOCITY_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text(), "VELOCITY_GOLDEN=write pytest writes it anew; look it through"


@pytest.mark.parametrize("name", ["minimal", "full"])
def test_the_script_has_nothing_that_shellcheck_warns_of(name: str):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    said = subprocess.run(
        [shellcheck, "--severity=warning", GOLDEN / f"{name}.sbatch"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout


@pytest.mark.parametrize("word", ["it's", 'a "b"', "$HOME", "a;b", "a`b`", "-x", "%j"])
def test_every_word_reaches_the_node_as_it_was_given(tmp_path: Path, word: str):
    (text,) = SlurmLauncher().render(submission(tmp_path, {"python": word}, (f"seed={word}",))).values()
    (command,) = re.findall(r"^command=\(.*\)$", text, re.MULTILINE)
    shown = subprocess.run(
        ["bash", "-c", f'{command}\nprintf "%s\\n" "${{command[@]}}"'], capture_output=True, text=True, check=True
    )
    assert shown.stdout.splitlines() == [
        word, "-m", "velocity", "node", "slurm", f"/shared/work/.velocity/jobs/{NAME}/1-job.yaml", f"seed={word}",
    ]  # fmt: skip


def test_no_secret_of_the_environment_is_in_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted0123456789")
    (text,) = SlurmLauncher().render(submission(tmp_path, FULL)).values()
    assert "planted" not in text
    assert "#SBATCH --export=ALL" in text, "it travels with the environment"


def test_a_folder_with_a_percent_sign_is_no_pattern_of_slurms(tmp_path: Path):
    there = submission(tmp_path, ONE)
    there = Submission(NAME, Path("/shared/100%j it's"), there.jobs, there.files)
    (text,) = SlurmLauncher().render(there).values()
    (option,) = (shlex.split(line)[1] for line in text.splitlines() if "--output" in line)
    assert option == "--output=/shared/100%%j it's/log.txt"
