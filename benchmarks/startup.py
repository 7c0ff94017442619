"""How soon does Velocity answer: its help, a wrong job file, a second start whose data is cached, a job's end?"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import contest
import gpu_throughput
import ragged
from contest import Result
from reporting import Figure, Report, machine, parser, publish, ratio
from train_contenders import job_text

COLUMNS = ("command", "best", "status")
PYTHON = Path(sys.executable)
JOB_RATIO = 2.5  # the whole job against what no job of two ranks can do without
SMALL: dict[str, Any] = {
    "strategy": {"zero": 3, "precision": "fp32"}, "launch": {"processes": 2}, "duration": {"steps": 2},
    "batch": {"rows": 2},
}  # fmt: skip


@dataclass(frozen=True)
class Command:
    """What is started, and how long it may take."""

    title: str
    command: Sequence[str]
    limit_seconds: float | None = None
    status: int = 0


def commands(folder: Path) -> dict[str, Command]:
    """Velocity's answers, and its peer's."""
    velocity, trl, python = str(PYTHON.with_name("velocity")), str(PYTHON.with_name("trl")), str(PYTHON)
    second = [python, __file__, "--child", str(folder / "job.yaml")]
    two_ranks = [python, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__, "--rank"]
    return {
        "help": Command("velocity --help", [velocity, "--help"], 0.3),
        "wrong": Command("velocity run with a misspelt key", [velocity, "run", str(folder / "wrong.yaml")], 1.0, 2),
        "second": Command("a second start: job to inputs, all cached", second, 1.0),
        "job": Command("a small job on two ranks, ZeRO 3", [velocity, "run", str(folder / "small.yaml"), "--fresh"]),
        "ranks": Command("torchrun: two ranks that import the same, meet and leave", two_ranks),
        "trl-help": Command("trl --help", [trl, "--help"]),
        "trl-import": Command("python -c 'import trl'", [python, "-c", "import trl"]),
    }


def timed(command: Command, environment: Mapping[str, str]) -> Result:
    """Seconds from start to end; RuntimeError where it did not end as it should."""
    started = time.perf_counter()
    done = subprocess.run(list(command.command), env=dict(environment), capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode != command.status:
        raise RuntimeError(f"{command.title} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    return {"seconds": seconds, "status": done.returncode}


def report(known: Mapping[str, Command], results: Mapping[str, Result], first: float, rounds: int) -> Report:
    """The table, the limits and the ratio to the peer."""
    rows = [
        [known[name].title, f"{result['seconds']:.3f} s", str(result["status"])] for name, result in results.items()
    ]
    limited = [
        Figure(command.title, results[name]["seconds"], "s", command.limit_seconds, at_most=True)
        for name, command in known.items()
        if command.limit_seconds is not None
    ]
    job, ranks = (results[name]["seconds"] for name in ("job", "ranks"))
    peers = [
        Figure("trl --help against velocity --help", ratio(results["trl-help"]["seconds"], results["help"]["seconds"])),
        Figure("a job of two ranks against ranks that only meet", ratio(job, ranks), "x", JOB_RATIO, at_most=True),
        Figure("a first start against a second", ratio(first, results["second"]["seconds"])),
    ]
    notes = [f"best of {rounds}, files in the page cache; whole processes, from start to end"]
    facts = {"rounds": rounds, "first_start_seconds": first, "results": dict(results)}
    return Report("startup", str(__doc__), COLUMNS, rows, [*limited, *peers], notes, facts)


def measure(model: Path, chats: Path, rounds: int) -> Report:
    """All commands, in rounds."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        text = job_text(model.resolve(), chats.resolve(), place)
        (place / "job.yaml").write_text(text)
        (place / "wrong.yaml").write_text(text.replace("learning_rate", "learning_rat"))
        gpu_throughput.make_model(place / "tiny", gpu_throughput.SHAPES["tiny"])
        small = {
            **json.loads(job_text(place / "tiny", chats.resolve(), place)),
            **SMALL,
            "output": str(place / "small"),
        }
        (place / "small.yaml").write_text(json.dumps(small))
        known, environment = commands(place), contest.plain_environment(place)
        first = timed(known["second"], environment)["seconds"]
        results = contest.hold(list(known), rounds, lambda name: timed(known[name], environment))
        return report(known, results, first, rounds)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--chats", type=Path, default=ragged.CHATS)
    options.add_argument("--rounds", type=int, default=5)
    given = options.parse_args()
    before = machine()
    publish(measure(given.model, given.chats, 1 if given.quick else given.rounds), before, save=given.save)


def find_inputs(job_file: Path) -> None:
    """What `velocity run` does before it starts a rank: the job, the plan, the tokenised data."""
    from velocity.config.load import load_job
    from velocity.models.locate import locate
    from velocity.planner.hardware import detect
    from velocity.planner.machines import Cluster
    from velocity.planner.plan import resolve
    from velocity.training.setup import prepare_inputs

    loaded = load_job(job_file)
    folder = locate(loaded.job.model)
    prepare_inputs(resolve(loaded, Cluster(detect()), folder).job, folder, lambda text: None)


def meet() -> None:
    """What every rank of a DeepSpeed job does: it imports, and meets the others."""
    import deepspeed
    import transformers  # noqa: F401

    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        meet()
    elif sys.argv[1:2] == ["--child"]:
        find_inputs(Path(sys.argv[2]))
    else:
        main()
