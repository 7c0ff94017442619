"""Before any process group exists: the run folder is claimed, inputs are tokenised, and all is written down.

It loads no weights, and torch only where a tokenizer does.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from velocity import __version__
from velocity.config.job import Job, LoadedJob
from velocity.config.resolved import differences, is_resolved, read_resolved, render
from velocity.config.sections import SourceConfig
from velocity.data.fingerprint import digest, folder_hash
from velocity.data.prepare import Preparation
from velocity.data.store import SequenceStore
from velocity.distributed import failure
from velocity.distributed.ds_config import deepspeed_config
from velocity.errors import UserError
from velocity.files import write_atomically
from velocity.training.callbacks.build import check_installed
from velocity.training.run_folder import RunFolder

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "safetensors", "pyarrow", "numpy",
            "peft", "bitsandbytes")  # fmt: skip
SAMPLE_BYTES = 1 << 20


@dataclass(frozen=True)
class Inputs:
    """What a job reads: its stores, and one hash over model and data."""

    train: list[SequenceStore]
    eval: dict[str, list[SequenceStore]]
    model_folder: Path
    hash: str
    model_content: str | None = None  # of its configuration and all its weights, where a reference is to be kept


def prepare_inputs(job: Job, model_folder: Path, report: Callable[[str], None]) -> Inputs:
    """Every source tokenised, or found in the cache; UserError for the first input that is wrong."""
    check_vocabulary(model_folder)
    preparation = Preparation(job, model_folder, report)
    train = _stores(preparation, "data.train", job.data.train)
    evals = {name: _stores(preparation, f"data.eval.{name}", sources) for name, sources in job.data.eval.items()}
    stores = [*train, *(store for group in evals.values() for store in group)]
    # Not the stores' keys: those change with Velocity's own code, which makes no other job.
    content = [preparation.tokenizer_hash, [store.stats["hashes"] for store in stores]]
    reference = _model_content(model_folder, preparation.cache) if job.reference == "cached" else None
    return Inputs(train, evals, model_folder, digest([_model_hash(model_folder), content]), reference)


def _stores(preparation: Preparation, key: str, sources: Sequence[SourceConfig]) -> list[SequenceStore]:
    """The sources' stores; a UserError that says no more than `data` names the key of the source."""
    stores = []
    for number, source in enumerate(sources):
        try:
            stores.append(preparation.source(source))
        except UserError as error:
            place = key if len(sources) == 1 else f"{key}.{number}"
            problems = [replace(one, where=place if one.where == "data" else one.where) for one in error.problems]
            raise UserError(problems) from None
    return stores


def check_vocabulary(model_folder: Path) -> None:
    """Nothing, or UserError where the tokenizer has ids that the model has no embedding for."""
    tokenizer, config = model_folder / "tokenizer.json", json.loads((model_folder / "config.json").read_text())
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    if size is None or not tokenizer.is_file():
        return
    try:
        content = json.loads(tokenizer.read_text(encoding="utf-8"))
        vocabulary = content["model"].get("vocab", {})
    except (ValueError, TypeError, KeyError):
        raise UserError("the tokenizer's file is not valid", str(tokenizer), "copy the model again") from None
    numbers = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    largest = max([*numbers, *(token["id"] for token in content.get("added_tokens", []))], default=0)
    if largest >= size:
        what = f"the tokenizer has a token {largest}, the model embeds only {size}"
        raise UserError(what, str(model_folder), "use the tokenizer that belongs to the model")


def _model_hash(folder: Path) -> str:
    """Over the config and, of each weight file, the size and its first and last mebibyte: large models stay quick."""
    parts: list[Any] = [(folder / "config.json").read_text()]
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            head = stream.read(SAMPLE_BYTES)
            stream.seek(max(0, file.stat().st_size - SAMPLE_BYTES))
            parts.append([file.name, file.stat().st_size, digest([head.hex(), stream.read().hex()])])
    return digest(parts)


def _model_content(folder: Path, cache: Path) -> str:
    """Over the config and every byte of the weights; it is read once, and then known by the files' times."""
    return digest([(folder / "config.json").read_text(), folder_hash(folder.glob("*.safetensors"), cache)])


def is_complete(loaded: LoadedJob, inputs: Inputs) -> bool:
    """True where the run folder already holds the result of this very job."""
    run = RunFolder(loaded.job.output)
    status = run.status()
    if status["state"] != "complete" or not run.model.is_dir() or status.get("inputs") != inputs.hash:
        return False
    old = read_resolved(run.job)
    return not differences(old, loaded.job) and old.duration == loaded.job.duration


def check_startable(loaded: LoadedJob, *, fresh: bool = False) -> None:
    """Nothing, or UserError for what would end the job as soon as its inputs are prepared, which can take long."""
    check_installed(loaded.job.tracking)
    run = RunFolder(loaded.job.output)
    if fresh or not run.path.is_dir():
        return
    if is_resolved(run.job):
        _refuse(run, differences(read_resolved(run.job), loaded.job))
    elif any(not path.name.startswith(".") for path in run.path.iterdir()):  # hidden: of a claim that was killed
        raise UserError(
            "the output folder is not empty, and no run of Velocity", str(run.path), "choose another output"
        )


def claim(loaded: LoadedJob, inputs: Inputs, hardware: Mapping[str, Any], *, fresh: bool) -> RunFolder:
    """The run folder describes this job; UserError where it belongs to another one and `fresh` is not given.

    The caller holds the folder (`RunFolder.owned`).
    """
    run = RunFolder(loaded.job.output)
    if fresh and run.path.exists():
        run.move_aside()
    check_startable(loaded)
    if is_resolved(run.job) and run.status().get("inputs", inputs.hash) != inputs.hash:
        _refuse(run, ["the content of the model or of the data"])
    run.path.mkdir(parents=True, exist_ok=True)
    failure.forget(run.failures)
    processes = loaded.job.launch.processes
    assert isinstance(processes, int), "the planner resolves launch.processes"
    write_atomically(run.job, render(loaded))
    write_atomically(run.deepspeed, json.dumps(deepspeed_config(loaded.job, processes), indent=1) + "\n")
    write_atomically(run.environment, json.dumps(_environment(inputs, hardware, processes), indent=1) + "\n")
    _collect_rejected(run, inputs)
    run.begin(inputs.hash)
    return run


def _refuse(run: RunFolder, differing: list[str]) -> None:
    """UserError that names what makes the folder another job's; nothing where that list is empty."""
    if differing:
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        what = f"the output folder belongs to another job; different: {'; '.join(differing[:3])}{more}"
        raise UserError(what, str(run.path), "choose another output, or move the old run aside with --fresh")


def _environment(inputs: Inputs, hardware: Mapping[str, Any], processes: int) -> dict[str, Any]:
    return {
        "velocity": __version__,
        "versions": {name: _version(name) for name in PACKAGES},
        "hardware": dict(hardware),
        "world_size": processes,
        "git_commit": _git_commit(),
        "model_folder": str(inputs.model_folder),
        "model_content": inputs.model_content,
        "data": {
            "train": [_entry(store) for store in inputs.train],
            "eval": {name: [_entry(store) for store in stores] for name, stores in inputs.eval.items()},
        },
    }


def _entry(store: SequenceStore) -> dict[str, Any]:
    return {"store": str(store.folder), **store.stats}


def _collect_rejected(run: RunFolder, inputs: Inputs) -> None:
    """rejected.jsonl of the run: the records of all sources that were left out, with their reason."""
    stores = [*inputs.train, *(store for group in inputs.eval.values() for store in group)]
    with run.rejected.open("wb") as out:
        for store in stores:
            with (store.folder / "rejected.jsonl").open("rb") as stream:
                shutil.copyfileobj(stream, out)
    if not run.rejected.stat().st_size:
        run.rejected.unlink()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _git_commit() -> str:
    """Of the working folder, which is where a user keeps job files."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return answer.stdout.strip()
