"""Does the memory that tokenising takes stay flat while the corpus grows tenfold?"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import contest
import ragged
from contest import Result, peak_bytes
from reporting import Figure, Report, machine, parser, publish, ratio
from train_contenders import job_text

TIMES = {"once": 1, "tenfold": 10}
COLUMNS = ("corpus", "MiB", "tokens", "main peak MiB", "largest worker MiB", "all at most MiB", "seconds")
MIB = 2**20


def child(job_file: Path) -> Result:
    """Tokenise the job's corpus into an empty cache, and say what memory it took."""
    from velocity.config.load import load_job
    from velocity.data.prepare import Preparation

    job = load_job(job_file).job
    started = time.perf_counter()
    store = Preparation(job, Path(job.model.path), lambda text: None).source(job.data.train[0])
    seconds = time.perf_counter() - started
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    workers = len(os.sched_getaffinity(0))
    own = peak_bytes()
    return {
        "seconds": seconds, "tokens": store.stats["tokens"], "main_bytes": own, "worker_bytes": worker,
        "peak_bytes": own + workers * worker,
    }  # fmt: skip


def report(results: Mapping[str, Result], megabytes: int) -> Report:
    """The table, the ratio, and the memory that a mebibyte of corpus costs."""
    rows = [
        [name, str(megabytes * TIMES[name]), f"{r['tokens']:,}", f"{r['main_bytes'] / MIB:,.0f}",
         f"{r['worker_bytes'] / MIB:,.0f}", f"{r['peak_bytes'] / MIB:,.0f}", f"{r['seconds']:.1f}"]
        for name, r in results.items()
    ]  # fmt: skip
    once, tenfold = (results[name]["peak_bytes"] for name in TIMES)
    grown = (tenfold - once) / MIB / (megabytes * (TIMES["tenfold"] - TIMES["once"]))
    figures = [
        Figure("tenfold corpus against one", ratio(tenfold, once), target=1.1, at_most=True),
        Figure("memory for each further MiB of corpus", grown, "MiB"),
    ]
    notes = ["peak resident memory of the main process and of as many workers as there are cores; pages that they "
             "share are counted in each"]  # fmt: skip
    facts = {"megabytes": megabytes, "results": dict(results)}
    return Report("data_memory", str(__doc__), COLUMNS, rows, figures, notes, facts)


def measure(model: Path, texts: Path, megabytes: int) -> Report:
    """Both corpora, made by repeating the texts."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lines = [json.dumps(record) + "\n" for record in ragged.read_records(texts)]
        environment = contest.velocity_environment(place)

        def run(name: str) -> Result:
            corpus, job = place / f"{name}.jsonl", place / f"{name}.yaml"
            with corpus.open("w", encoding="utf-8") as stream:
                stream.writelines(ragged.up_to(lines, megabytes * TIMES[name] * MIB))
            job.write_text(job_text(model.resolve(), corpus, place, task="pretrain"))
            return contest.run_script(Path(__file__), ["--child", str(job)], environment)

        return report(contest.hold(list(TIMES), 1, run), megabytes)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--texts", type=Path, default=ragged.TEXTS)
    options.add_argument("--megabytes", type=int, default=8, help="size of the smaller corpus")
    given = options.parse_args()
    before = machine()
    publish(measure(given.model, given.texts, 1 if given.quick else given.megabytes), before, save=given.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(Path(sys.argv[2]))))
    else:
        main()
