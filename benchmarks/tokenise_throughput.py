"""How many chats a second does Velocity tokenise and pack, against TRL's own preparation of the same chats?"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import contest
import ragged
from contest import Result
from reporting import Figure, Report, machine, parser, publish, ratio
from train_contenders import job_text

TITLES = {
    "velocity": "Velocity, its defaults (a process a core)",
    "velocity-one": "Velocity, one process",
    "trl": "TRL, its defaults (one process)",
    "trl-all": "TRL, a process a core",
}
COLUMNS = ("contender", "chats/s", "seconds", "tokens", "bins")
LENGTH = 1024


def velocity(folder: Path, processes: int | None) -> Result:
    """From the JSONL file to bins of a memory-mapped store; the clock starts with the tokenizer loaded."""
    from velocity.config.load import load_job
    from velocity.data.corpus import Corpus
    from velocity.data.pack import best_fit
    from velocity.data.prepare import Preparation

    with tempfile.TemporaryDirectory(dir=folder) as cache:  # each round tokenises anew
        overrides = [f"data.cache={cache}"] + ([f"data.processes={processes}"] if processes else [])
        job = load_job(folder / "job.yaml", overrides).job
        preparation = Preparation(job, Path(job.model.path), lambda text: None)
        assert preparation.tokenizer is not None, "loaded before the clock starts"
        started = time.perf_counter()
        corpus = Corpus([preparation.source(job.data.train[0])], [1.0])
        bins = len(best_fit(corpus.lengths, LENGTH))
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "tokens": int(corpus.lengths.sum()), "bins": bins}


def trl(folder: Path, processes: int | None) -> Result:
    """SFTTrainer's own preparation with packing, of a data set that is already read; it makes no masks."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    job = json.loads((folder / "job.yaml").read_text())
    model, tokenizer = _small_model(Path(job["model"]))
    config = SFTConfig(
        output_dir=job["output"], packing=True, max_length=LENGTH, bf16=False, report_to="none", disable_tqdm=True,
        dataset_num_proc=processes,
    )  # fmt: skip
    records = ragged.read_records(folder / "chats.jsonl")
    trainer = SFTTrainer(model, args=config, train_dataset=Dataset.from_list(records[:8]), processing_class=tokenizer)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        source = ragged.write_records(Path(cache) / "chats.jsonl", records)
        data = Dataset.from_json(str(Path(cache) / "chats.jsonl"), cache_dir=cache)  # on disk, as load_dataset gives it
        assert len(data) == source
        started = time.perf_counter()
        packed = trainer._prepare_dataset(data, tokenizer, config, True, None, "train")
        seconds = time.perf_counter() - started
        tokens = sum(map(sum, packed["seq_lengths"]))
        return {"seconds": seconds, "tokens": tokens, "bins": len(packed)}


def _small_model(folder: Path) -> tuple[Any, Any]:
    """One small layer with the folder's vocabulary: the trainer needs a model to prepare data."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    return LlamaForCausalLM(config), tokenizer


def child(name: str, folder: Path) -> Result:
    """One contender's round."""
    import os

    cores = len(os.sched_getaffinity(0))
    match name:
        case "velocity":
            return velocity(folder, None)
        case "velocity-one":
            return velocity(folder, 1)
        case "trl":
            return trl(folder, None)
        case _:
            return trl(folder, cores)


def report(results: Mapping[str, Result], chats: int, rounds: int) -> Report:
    """The table and the ratios."""
    speed = {name: ratio(chats, result["seconds"]) for name, result in results.items()}
    rows = [
        [TITLES[name], f"{speed[name]:,.0f}", f"{r['seconds']:.2f}", f"{r['tokens']:,}", str(r["bins"])]
        for name, r in results.items()
    ]
    figures = [
        Figure("both with their defaults", ratio(speed["velocity"], speed["trl"]), target=2.0),
        Figure("both with a process a core", ratio(speed["velocity"], speed["trl-all"])),
        Figure("both with one process", ratio(speed["velocity-one"], speed["trl"])),
    ]
    notes = [
        "Velocity's time includes reading the file, the masks of the assistant's turns, the audit of every token and "
        "writing the store; TRL's begins with a data set in memory-mapped Arrow, and makes no masks (SmolLM2's chat "
        "template has no {% generation %} markers)",
        "imports and the tokenizer's loading are not counted",
        *contest.disturbed(results),
    ]
    facts = {"chats": chats, "rounds": rounds, "results": dict(results)}
    return Report("tokenise_throughput", str(__doc__), COLUMNS, rows, figures, notes, facts)


def measure(model: Path, chats: Path, count: int, rounds: int) -> Report:
    """All contenders over the same chats, which are repeated where there are too few."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ragged.write_records(place / "chats.jsonl", ragged.repeated(ragged.read_records(chats), count))
        (place / "job.yaml").write_text(job_text(model.resolve(), place / "chats.jsonl", place))
        plain, ours = contest.plain_environment(place), contest.velocity_environment(place)

        def run(name: str) -> Result:
            arguments = ["--child", name, folder]
            return contest.run_script(Path(__file__), arguments, ours if name.startswith("velocity") else plain)

        return report(contest.hold(list(TITLES), rounds, run), count, rounds)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--model", type=Path, default=ragged.MODEL)
    options.add_argument("--chats", type=Path, default=ragged.CHATS)
    options.add_argument("--records", type=int, default=6000)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args()
    before = machine()
    count, rounds = (400, 1) if given.quick else (given.records, given.rounds)
    publish(measure(given.model, given.chats, count, rounds), before, save=given.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], Path(sys.argv[3]))))
    else:
        main()
