"""W&B and MLflow, the real libraries without a network: what is told to a run is what they keep.

They are an extra that the other tests do without, so they are installed beside the environment, for this test alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TELL = """
import sys
from pathlib import Path
sys.path.append(sys.argv[1])  # last: what both need comes from the tests' own environment
from velocity.training.callbacks.build import build_callbacks
folder = Path(sys.argv[2])
job = {"tracking": ["wandb", "mlflow"], "seed": 0, "model": {"path": "named-not-to-be-seen-7"}}
callbacks = build_callbacks(folder, job, 3, 0)
for step in (1, 2, 3):
    for callback in callbacks:
        callback.on_step({"step": step, "loss": 1 / step, "tokens_per_second": 5.0, "memory_gib": 1.0})
for callback in callbacks:
    callback.on_eval(3, {"unseen": {"loss": 1.0, "perplexity": 2.5, "tokens": 5}})
    callback.close()
"""


@pytest.mark.slow
def test_what_a_run_tells_is_kept_by_wandb_and_mlflow(tmp_path: Path) -> None:
    packages, run = tmp_path / "packages", tmp_path / "run"
    run.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages), "wandb", "mlflow-skinny"]
    subprocess.run(install, check=True, capture_output=True)
    environment = {
        **os.environ,
        "WANDB_MODE": "offline",
        "MY_PASSWORD": "not-to-be-seen-7",
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    command = [sys.executable, "-c", TELL, str(packages), str(run)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = next((tmp_path / "mlruns").rglob("metrics/train/loss")).read_text().split()
    assert [(float(value), int(step)) for value, step in zip(losses[1::3], losses[2::3], strict=True)] == [
        (1.0, 1), (0.5, 2), (pytest.approx(1 / 3), 3),
    ]  # fmt: skip
    assert next((tmp_path / "mlruns").rglob("eval/unseen/perplexity")).read_text().split()[1:] == ["2.5", "3"]
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    files = (path for place in (run, tmp_path / "mlruns") for path in place.rglob("*") if path.is_file())
    kept = {path: path.read_bytes() for path in files}
    assert [path for path, content in kept.items() if b"not-to-be-seen-7" in content] == []
    assert sum(b"named-***" in content for content in kept.values()) >= 2, "each was told of the job"
