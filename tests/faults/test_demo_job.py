"""The demo's fine-tuning job on two hosts of every target: each step has the loss and gradient norm of one machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands import losses
from tests.demo_parts import DEMO, demo_parts
from tests.kubernetes_laboratory import CLAIM, kubernetes
from tests.laboratory import laboratory
from tests.launch.kubernetes.jobs import IMAGE
from tests.sagemaker_service import simulator
from tests.slurm_laboratory import Slurm

pytestmark = pytest.mark.slow
STEPS, TOLERANCE = 3, 1e-5
PATIENCE_SECONDS = 1800.0
# The demo's job, but for the pre-training before it and for its length; a step has four rows.
BRIEF = (
    "model=runs/demo/base", f"duration.steps={STEPS}", "data.eval={}", "data.cache=cache", "data.on_long_chat=skip",
    "data.sequence_length=128", "batch.tokens=512", "strategy={zero: 2, precision: fp32}",
)  # fmt: skip
Figures = list[tuple[int, float, float]]  # step, loss, gradient norm


def arguments(name: str, launch: dict[str, Any]) -> list[str]:
    """Of the command that runs it on a target."""
    job = [str(DEMO / "sft.yaml"), *BRIEF, f"output=runs/{name}"]
    return ["-m", "velocity", "run", *job, f"launch={json.dumps({'processes': 2, **launch})}"]


def figures(project: Path, name: str) -> Figures:
    """What a run has measured; its weights are not kept, which are gigabytes."""
    found = losses(project / "runs" / name)
    shutil.rmtree(project / "runs" / name)
    return found


def run_here(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command of Python's in the project's folder."""
    return subprocess.run(
        [sys.executable, *words], cwd=project, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@pytest.fixture(name="project", scope="module")
def _project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the demo has prepared."""
    kept = demo_parts(tmp_path_factory)
    project = tmp_path_factory.mktemp("project")
    for name in ("base", "corpus"):
        shutil.copytree(kept / name, project / "runs" / "demo" / name)
    return project


@pytest.fixture(name="alone", scope="module")
def _alone(project: Path) -> Figures:
    """Of two processes on one machine."""
    done = run_here(project, *arguments("alone", {"kind": "local"}))
    assert done.returncode == 0, done.stderr
    return figures(project, "alone")


def assert_same(found: Figures, alone: Figures) -> None:
    assert [step for step, *_ in found] == [step for step, *_ in alone] == list(range(1, STEPS + 1))
    for (step, *ours), (_, *theirs) in zip(found, alone, strict=True):
        print(f"step {step}: loss {ours[0]!r} and {theirs[0]!r}, gradient norm {ours[1]!r} and {theirs[1]!r}")
        assert ours == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE), f"step {step}"


def test_over_ssh(project: Path, alone: Figures, tmp_path: Path):
    with laboratory(tmp_path / "lab") as lab:
        launch = {"kind": "ssh", "hosts": lab.names, "config": str(lab.config), "python": sys.executable}
        words = arguments("ssh", launch)
        done = lab.run(lab.hub, sys.executable, *words, cwd=project, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert_same(figures(project, "ssh"), alone)


def test_on_slurm(project: Path, alone: Figures, cluster: Slurm, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(project)
    words = arguments("slurm", {"kind": "slurm", "nodes": 2, "cpus_per_node": 1})
    done = cluster.slurm(sys.executable, *words, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    assert_same(figures(project, "slurm"), alone)


def test_on_sagemaker(project: Path, alone: Figures, tmp_path: Path):
    with simulator(tmp_path) as service:
        machines = {"kind": "sagemaker", "instance": "ml.c5.xlarge", "nodes": 2}
        words = arguments("sagemaker", {**machines, "role": service.aws.role, "image": service.aws.image})
        done = run_here(project, *words)
        assert done.returncode == 0, done.stderr
        (name,) = service.jobs
        assert run_here(project, "-m", "velocity", "fetch", name).returncode == 0
    assert_same(figures(project, "sagemaker"), alone)


@pytest.fixture(name="pods")
def _pods(project: Path) -> Iterator[None]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    with kubernetes(project):
        yield


@pytest.mark.usefixtures("pods")
def test_on_kubernetes(project: Path, alone: Figures):
    done = run_here(
        project, *arguments("kubernetes", {"kind": "kubernetes", "nodes": 2, "image": IMAGE, "claim": CLAIM})
    )
    assert done.returncode == 0, done.stderr
    assert_same(figures(project, "kubernetes"), alone)
