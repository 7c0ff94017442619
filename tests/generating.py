"""What tests of batch inference are made of: requests in a queue, an engine that is watched, jobs, and the oracle.

Shape letters: B rows, S tokens, V vocabulary.
"""

from __future__ import annotations

import json
import resource
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from tests.making import generate_data, tiny_config, tiny_model, tiny_model_folder, tiny_tokenizer, write_jsonl
from velocity.config.generate import GenerateJob
from velocity.config.inference import GenerationConfig
from velocity.config.job import LoadedJob
from velocity.config.load import load_job
from velocity.data.tokenizer import load_tokenizer
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import inference_config
from velocity.inference.build import build_decoder, build_engine, longest_row
from velocity.inference.engine import Engine, Step
from velocity.inference.hf_engine import TransformersEngine
from velocity.inference.ledger import order_of
from velocity.inference.request import Completion, Request, seed_of
from velocity.inference.rolling import Limits, RollingBatch, Rules
from velocity.inference.run import Speaker
from velocity.inference.setup import Inputs, prepare_inputs
from velocity.inference.text import Spoken
from velocity.planner.hardware import Hardware
from velocity.planner.inference import resolve
from velocity.planner.machines import Cluster
from velocity.runs.claim import claim
from velocity.runs.folder import RunFolder

MACHINE = Hardware(2, 8.0, cpu_bf16=False)
VOCABULARY = 97
CLEAR = 1e-5  # a likeliest token leads by more than this: rounding, which is 1e-6, cannot change it
Answers = dict[tuple[int, int], Completion]


class Asked:
    """A queue of requests, in the order given."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.waiting = deque(requests)

    def peek(self) -> Request | None:
        return self.waiting[0] if self.waiting else None

    def pop(self) -> Request:
        return self.waiting.popleft()


class Watching:
    """Counts tokens, and asks to stop once so many turns are over."""

    def __init__(self, turns: float = float("inf")) -> None:
        self.turns, self.asked, self.tokens = turns, 0, 0

    def stopping(self) -> bool:
        self.asked += 1
        return self.asked > self.turns

    def made(self, tokens: int) -> None:
        self.tokens += tokens


class Traced(TransformersEngine):
    """Plain transformers that remembers each forward: its rows, the tokens of a row, and the places in the cache."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, Ranks())
        self.forwards: list[tuple[int, int, int]] = []

    def forward(self, step: Step) -> Tensor:
        self.forwards.append((*step.ids_BQ.shape, step.mask.shape[-1]))
        return super().forward(step)


class Cramped(Traced):
    """An engine whose memory holds so many rows, or none with a certain token."""

    def __init__(self, model: Any, most: int, *, never: int = -1, recovers: bool = True) -> None:
        super().__init__(model)
        self.most, self.never, self.recovers = most, never, recovers
        self.failures = 0

    def forward(self, step: Step) -> Tensor:
        logits_BV = super().forward(step)  # first: what is in the cache already must not count
        if len(step.ids_BQ) > self.most or bool((step.ids_BQ == self.never).any()):
            self.failures += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has 80 GiB")
        return logits_BV


def family(name: str, **changes: Any) -> Any:
    """A tiny model of an architecture, in evaluation mode, with random biases where it has some."""
    import transformers

    config = tiny_config(VOCABULARY)
    shape: dict[str, Any] = {key: getattr(config, key) for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "max_position_embeddings", "initializer_range", "tie_word_embeddings",
    )}  # fmt: skip
    if name == "GPT2":
        shape = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512}
        shape["initializer_range"] = 0.2
    if name == "Gemma2":
        shape["head_dim"] = 16
    ends = {"eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
    model = tiny_model(getattr(transformers, f"{name}Config")(**{**shape, **ends, **changes}))
    with torch.no_grad():
        for number, (key, parameter) in enumerate(model.named_parameters()):
            if key.endswith("bias"):  # made as zeros, which would hide one that is forgotten
                parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(number))
    return model


def prompts_of(lengths: Sequence[int], *, shared: int = 0, seed: int = 0) -> list[list[int]]:
    """Random prompts of these lengths, none of which holds token 0; the first `shared` tokens are those of all."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> list[int]:
        found: list[int] = torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()
        return found

    head = drawn(shared)
    return [[*head, *drawn(length - shared)] for length in lengths]


def requests_of(prompts: Sequence[Sequence[int]], samples: int = 1, seed: int = 0) -> list[Request]:
    """The requests of some rows; a row's seed follows from its tokens, wherever it stands."""
    return [
        Request(row, sample, ids, seed_of(seed, str(list(ids)), sample))
        for row, ids in enumerate(prompts)
        for sample in range(samples)
    ]


def batch_of(  # noqa: PLR0913 - what decoding depends on
    engine: Engine,
    longest: int,
    *,
    rows: int = 8,
    tokens: int = 10**6,
    prompt_tokens: int = 4096,
    ends: Iterable[int] = (),
    stopped: Callable[[Sequence[int]], bool] = lambda ids: False,
    shared: Sequence[int] = (),
    **generation: Any,
) -> RollingBatch:
    """A rolling batch on an engine, for prompts of at most `longest` tokens."""
    config = GenerationConfig(**generation)
    rules = Rules(frozenset(ends), stopped)
    limits = Limits(rows, tokens, prompt_tokens)
    return RollingBatch(engine, config, limits, rules, longest + config.max_new_tokens, shared)


def answered(engine: Engine, requests: Sequence[Request], **settings: Any) -> Answers:
    """Each request's completion, by row and sample, in the order in which they ended; each came once."""
    batch = batch_of(engine, max(len(request.ids) for request in requests), **settings)
    found: Answers = {}
    for request, completion in batch.run(Asked(requests), Watching()):
        assert (request.row, request.sample) not in found, "a request was answered twice"
        found[request.row, request.sample] = completion
    return found


def tokens_of(answers: Answers) -> list[list[int]]:
    """The completions' tokens by row and sample."""
    return [answers[key].ids for key in sorted(answers)]


def greedy(model: Any, ids: Sequence[int], new: int, ends: Iterable[int] = (), penalty: float = 1.0) -> list[int]:
    """What transformers itself completes a prompt with, alone and in fp32; no choice of it is a matter of rounding."""
    return list(_greedy(model, tuple(ids), new, tuple(sorted(ends)), penalty))


@cache
@torch.no_grad()
def _greedy(model: Any, ids: tuple[int, ...], new: int, ends: tuple[int, ...], penalty: float) -> tuple[int, ...]:
    found = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
        max_new_tokens=new, eos_token_id=list(ends) or None, pad_token_id=0, repetition_penalty=penalty,
        output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    for scores_BV in found.scores:
        first, second = scores_BV[0].topk(2).values.tolist()
        assert first - second > CLEAR, "the oracle's choice is a matter of rounding: take another seed"
    return tuple(found.sequences[0, len(ids) :].tolist())


@torch.no_grad()
def logps_behind(model: Any, prompt: Sequence[int], completion: Sequence[int]) -> list[float]:
    """The log-probability of each token of a completion, by one forward over all of it."""
    logits_SV = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0].float()
    logps_SV = logits_SV.log_softmax(dim=-1)[len(prompt) - 1 : -1]
    found: list[float] = logps_SV.gather(1, torch.tensor(list(completion))[:, None])[:, 0].tolist()
    return found


def job_values(folder: Path, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """`making.generate_data` in one process and in fp32. `changes` holds dotted keys."""
    data = {**generate_data(folder), "strategy": {"precision": "fp32"}, "launch": {"processes": 1}}
    for key, value in (changes or {}).items():
        section, _, name = key.rpartition(".")
        (data.setdefault(section, {}) if section else data)[name] = value
    return data


def generate_job(folder: Path, changes: Mapping[str, Any] | None = None) -> GenerateJob:
    """The job of `job_values`."""
    return GenerateJob.model_validate(job_values(folder, changes))


def write_generate_job(path: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """Make `path` the file of a generate job whose inputs lie beside it."""
    path.write_text(yaml.safe_dump(job_values(path.parent, changes), sort_keys=False), "utf-8")
    return path


def planned(path: Path, *overrides: str) -> LoadedJob[GenerateJob]:
    """The job of a file, without an `auto`."""
    loaded = load_job(path, overrides)
    return resolve(loaded, Cluster(MACHINE), Path(loaded.job.model.path))


def inputs_of(job: GenerateJob) -> Inputs:
    """What the job reads, ready for the ranks."""
    return prepare_inputs(job, Path(job.model.path), lambda text: None)


def claimed(loaded: LoadedJob[GenerateJob], *, fresh: bool = False) -> RunFolder:
    """The run folder of a planned job, as `velocity run` leaves it to the ranks."""
    return claim(loaded, inputs_of(loaded.job).manifest(loaded.job), MACHINE.describe(), fresh=fresh)


def questions(count: int) -> list[dict[str, Any]]:
    """Rows with prompts of different lengths, all alike in the first field."""
    return [{"number": i, "prompt": f"What is {i * i}" + " and why" * (i * 7 % 5) + "?"} for i in range(count)]


def question_folder(folder: Path, count: int = 20, **model: Any) -> Path:
    """`folder` holds a tiny model and `count` questions, as `job_values` names them."""
    tiny_model_folder(folder / "model", **model)
    write_jsonl(folder / "prompts.jsonl", questions(count))
    return folder


def completions(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's completions.jsonl."""
    return [json.loads(line) for line in (run / "completions.jsonl").read_text("utf-8").splitlines()]


def family_folder(path: Path, name: str, **changes: Any) -> Path:
    """Make `path` the folder of a tiny model of an architecture, and of a tokenizer with its template, as SmolLM2's."""
    tokenizer = tiny_tokenizer()
    model = family(name, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **changes)
    model.save_pretrained(str(path))
    tokenizer.save_pretrained(str(path))
    return path


def whole_model(folder: Path) -> Any:
    """The folder's model as transformers loads it, in fp32: the oracle's."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


def answered_on(ranks: Ranks, path: Path, overrides: Sequence[str]) -> list[tuple[int, int, list[int], list[float]]]:
    """Row, sample, tokens and log-probabilities of the completions that one rank makes of a job's prompts.

    Parts are built as `velocity run` builds them. Ranks that share a model all take all rows; others have each their
    own, and very different numbers of them: every fifth row is the first rank's.
    """
    job = planned(path, f"launch.processes={ranks.world_size}", *overrides).job
    prompts, folder = inputs_of(job).prompts, Path(job.model.path)
    longest = longest_row(job, prompts.lengths)
    engine = build_engine(job, folder, inference_config(job, ranks.world_size), ranks, longest)
    spoken = Spoken(load_tokenizer(folder), job.generation, folder)
    shared = job.generation.engine == "deepspeed" or ranks.world_size == 1
    rows = [row for row in order_of(prompts.lengths).tolist() if shared or (row % 5 == 0) == ranks.first]
    requests = [request for row in rows for request in Speaker(job, prompts, spoken).requests_of(row)]
    decoder = build_decoder(job, engine, spoken, longest, prompts.shared)
    found = [
        (request.row, request.sample, done.ids, done.logps)
        for request, done in decoder.run(Asked(requests), Watching())
    ]
    engine.close()
    return found


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """No file that we write may be larger: a write fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
