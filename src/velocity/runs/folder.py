"""What lies where in a run folder, who may write it, and what state the run is in. It knows no torch."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from velocity.errors import UserError
from velocity.files import write_atomically

# What of an evaluation is shown to people, and its name for them; metrics.jsonl has more.
MEASURES = {
    "perplexity": "perplexity",
    "accuracy": "reward accuracy",
    "preference_accuracy": "preference accuracy",
    "margin": "reward margin",
}
# How the names of measures begin that are shares, told in per cent.
SHARES = ("acc", "preference_accuracy", "exact_match", "f1", "rouge", "chrf", "pattern")


def is_share(measure: str) -> bool:
    """True for a measure from 0 to 1 that is told in per cent."""
    return measure.startswith(SHARES)


class Measured(NamedTuple):
    """A measure's value, and between what it may be; None where that is not finite, or not known."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, result: Mapping[str, Any], measure: str) -> Measured:
        """A measure of an evaluation set's result, as metrics.jsonl has it."""
        return cls(result[measure], result.get(f"{measure}_low"), result.get(f"{measure}_high"))

    def __str__(self) -> str:
        """`16.46 (14.20–18.10)`."""
        if self.value is None:
            return "not finite"
        bounds = "" if self.low is None or self.high is None else f" ({self.low:.2f}–{self.high:.2f})"
        return f"{self.value:.2f}{bounds}"


class RunFolder:
    """The output folder of one job."""

    def __init__(self, path: str | Path) -> None:
        path = Path(path).expanduser()
        self.path = path
        self.job = path / "job.yaml"
        self.deepspeed = path / "deepspeed.json"
        self.deepspeed_origins = path / "deepspeed-origins.json"  # where each of its values comes from
        self.plan = path / "plan.json"  # what the planner predicted, and what was measured
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.status_file = path / "status.json"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.merged = path / "merged"  # model/ where that is an adapter, put into the model it belongs to
        self.log = path / "log.txt"
        self.rejected = path / "rejected.jsonl"
        self.audit = path / "audit.json"  # what is known to be wrong with the text of the data
        self.failures = path / "failures"
        self.shards = path / "shards"  # a job's finished ones that answers or scores rows, until all are put together
        self.rows = path / "rows"  # what an evaluate job found of each row, a file a set
        self.evaluation = path / "evaluation.json"  # and what they say together
        self.completions = {kind: path / f"completions.{kind}" for kind in ("jsonl", "parquet")}

    @property
    def result(self) -> Path | None:
        """The tuned model, the completions, or the figures; None where there is none yet."""
        results = (self.model, *self.completions.values(), self.evaluation)
        return next((path for path in results if path.exists()), None)

    def status(self) -> dict[str, Any]:
        """`state` (new, running, complete, interrupted, failed) and what belongs to it."""
        if not self.status_file.is_file():
            return {"state": "new"}
        status: dict[str, Any] = json.loads(self.status_file.read_text())
        return status

    def set_status(self, state: str, **facts: Any) -> None:
        """The run is in `state`, written atomically."""
        write_atomically(self.status_file, json.dumps({**self.status(), "state": state, **facts}, indent=1) + "\n")

    def begin(self, inputs: str) -> None:
        """A new attempt at the job with these inputs; nothing of an earlier one's state is left."""
        write_atomically(self.status_file, json.dumps({"state": "running", "inputs": inputs}, indent=1) + "\n")

    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; a torn last line, of a process that was killed, is left out."""
        if not self.metrics.is_file():
            return []
        rows = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
        return rows

    def rewind(self, step: int) -> None:
        """metrics.jsonl tells of nothing after `step`: those steps are done again."""
        kept = [line for line in self.lines() if line["step"] <= step]
        write_atomically(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def was_evaluated(self, step: int) -> bool:
        """True where metrics.jsonl has the evaluation after `step`."""
        return any("eval" in line and line["step"] == step for line in self.lines())

    def evaluations(self) -> dict[str, tuple[dict[str, float], dict[str, float]]]:
        """For each evaluation set, its first and its last result."""
        results: dict[str, tuple[dict[str, float], dict[str, float]]] = {}
        for line in self.lines():
            for name, result in line.get("eval", {}).items():
                results[name] = (results.get(name, (result, result))[0], result)
        return results

    def results(self) -> list[tuple[str, str, Measured, Measured]]:
        """For each evaluation set and each measure that is for people: what it was first, and last."""
        return [
            (name, words, Measured.of(before, key), Measured.of(after, key))
            for name, (before, after) in self.evaluations().items()
            for key, words in MEASURES.items()
            if key in before and key in after
        ]

    def move_aside(self) -> Path:
        """The folder's content lies beside it, under the time of day, so that a new run can take its place."""
        aside = self.path.with_name(f"{self.path.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        self.path.rename(aside)
        return aside

    @property
    def _lock(self) -> Path:
        """Beside the folder, not in it: --fresh moves the folder while we hold it."""
        path = self.path.absolute()
        return path.with_name(f".{path.name}.lock")

    def is_held(self) -> bool:
        """True while some process writes the folder."""
        if not self._lock.is_file():
            return False
        with self._lock.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @contextmanager
    def owned(self) -> Iterator[None]:
        """Only we write the folder; UserError that names the holder where another process does."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(
                    f"the run folder is held by {holder}", str(self.path), "wait for it, or stop it"
                ) from None
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
            stream.flush()
            yield
