"""The contenders of generate_throughput.py: each completes the same prompts greedily and says how long it took.

`python generate_contenders.py NAME JOB.yaml`. Loading is not timed; a few prompts warm up.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contest import Result, peak_bytes

NEW_TOKENS = 32
WARM_ROWS = 4


@dataclass(frozen=True)
class Completed:
    """What was timed; `text_hash` is equal where the same tokens came out."""

    rows: int
    tokens: int
    seconds: float
    tokens_hash: str
    how: str

    def describe(self) -> Result:
        """Plain values, with the peak memory of the process."""
        return {**vars(self), "peak_bytes": peak_bytes()}


def job_text(model: Path, prompts: Path, folder: Path) -> str:
    """The job file that Velocity runs, and the others take their prompts from."""
    data = {"prompts": str(prompts), "cache": str(folder / "cache")}
    job = {"task": "generate", "model": str(model), "output": str(folder / "run"), "data": data,
           "generation": {"max_new_tokens": NEW_TOKENS}, "strategy": {"precision": "fp32"}}  # fmt: skip
    return json.dumps(job)  # JSON is YAML


def velocity(job_file: Path, *, engine: str) -> Completed:
    """The real parts of a run: its prompts, its engine and its rolling batch."""
    from velocity.config.load import load_job
    from velocity.distributed import comm
    from velocity.distributed.ds_config import inference_config
    from velocity.inference.build import build_decoder, build_engine, longest_row
    from velocity.inference.request import Request
    from velocity.inference.setup import prepare_inputs
    from velocity.inference.text import Spoken
    from velocity.models.quiet import quieten
    from velocity.start.resolve import resolve

    quieten()
    loaded, folder = resolve(load_job(job_file, [f"generation.engine={engine}"]))
    job, prompts = loaded.job, prepare_inputs(loaded.job, folder, lambda text: None).prompts
    ranks = comm.from_environment()
    if engine != "transformers":
        comm.start(ranks)
    longest = longest_row(job, prompts.lengths)
    built = build_engine(job, folder, inference_config(job, 1), ranks, longest)
    spoken = Spoken(_tokenizer(folder), job.generation, folder)
    order = sorted(range(len(prompts)), key=lambda row: -prompts.lengths[row])
    requests = [Request(row, 0, prompts.ids(row)) for row in order]

    def complete(some: list[Request]) -> dict[int, list[int]]:
        decoder = build_decoder(job, built, spoken, longest, prompts.shared)
        return {request.row: done.ids for request, done in decoder.run(_Queue(some), _Nobody())}

    complete(requests[:WARM_ROWS])
    started = time.perf_counter()
    found = complete(requests)
    seconds = time.perf_counter() - started
    comm.stop()
    return _completed([found[row] for row in range(len(prompts))], seconds, f"at most {job.batch.rows} rows at once")


class _Queue(deque[Any]):
    def peek(self) -> Any:
        return self[0] if self else None

    def pop(self) -> Any:  # type: ignore[override]
        return self.popleft()


class _Nobody:
    def stopping(self) -> bool:
        return False

    def made(self, tokens: int) -> None: ...


def plain(
    job_file: Path, *, batch: int, cache: bool = True, ordered: bool = False, most: int | None = None
) -> Completed:
    """transformers' generate over fixed batches, padded on the left, in input order or longest first."""
    import torch
    from transformers import AutoModelForCausalLM

    job = json.loads(job_file.read_text())
    rows = [json.loads(line) for line in Path(job["data"]["prompts"]).read_text().splitlines()][:most]
    tokenizer = _tokenizer(Path(job["model"]))
    tokenizer.padding_side = "left"
    texts = [
        tokenizer.apply_chat_template(row["messages"][:1], tokenize=False, add_generation_prompt=True) for row in rows
    ]
    order = sorted(range(len(texts)), key=lambda i: -len(tokenizer(texts[i])["input_ids"])) if ordered else None
    model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    found: dict[int, list[int]] = {}

    def complete(places: list[int]) -> None:
        for first in range(0, len(places), batch):
            some = places[first : first + batch]
            inputs = tokenizer([texts[i] for i in some], return_tensors="pt", padding=True, add_special_tokens=False)
            with torch.no_grad():
                out = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=cache)
            for i, ids in zip(some, out[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
                found[i] = ids[:end]

    complete([0])
    found.clear()
    started = time.perf_counter()
    complete(order or list(range(len(texts))))
    seconds = time.perf_counter() - started
    return _completed([found[i] for i in range(len(texts))], seconds, f"batches of {batch}")


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))


def _completed(rows: list[list[int]], seconds: float, how: str) -> Completed:
    import hashlib

    text = json.dumps(rows).encode()
    return Completed(len(rows), sum(map(len, rows)), seconds, hashlib.sha256(text).hexdigest()[:12], how)


@dataclass(frozen=True)
class Contender:
    """Who takes part: its title, how it completes, and whether in `velocity run`'s environment."""

    title: str
    complete: Callable[[Path], Completed]
    our_environment: bool = False


def _of(complete: Callable[..., Completed], **settings: Any) -> Callable[[Path], Completed]:
    return functools.partial(complete, **settings)


NAIVE_ROWS = 8
CONTENDERS = {
    "naive": Contender("a loop without a cache, batches of 8", _of(plain, batch=8, cache=False, most=NAIVE_ROWS)),
    **{
        f"generate-{size}": Contender(f"transformers' generate, batches of {size}", _of(plain, batch=size))
        for size in (8, 16, 32, 64)
    },
    "generate-sorted": Contender("… of 32, longest prompts first", _of(plain, batch=32, ordered=True)),
    "velocity": Contender("Velocity, engine transformers", _of(velocity, engine="transformers"), True),
    "velocity-deepspeed": Contender("Velocity, engine deepspeed", _of(velocity, engine="deepspeed"), True),
    "velocity-zero": Contender("Velocity, engine zero", _of(velocity, engine="zero"), True),
}


if __name__ == "__main__":
    print(json.dumps(CONTENDERS[sys.argv[1]].complete(Path(sys.argv[2])).describe()))
