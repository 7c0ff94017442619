"""The parts that run a model, each built once from the run folder: the only place that matches on an engine's name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from velocity.config.inference import InferenceJob
from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import streamed
from velocity.errors import UserError
from velocity.inference.beams import BeamSearch
from velocity.inference.cache import rolls
from velocity.inference.deepspeed_engine import DeepSpeedInferenceEngine
from velocity.inference.engine import Engine
from velocity.inference.hf_engine import TransformersEngine
from velocity.inference.probe import TOLERANCE, check_engine, engine_gap, plain_logps
from velocity.inference.rolling import Limits, RollingBatch, Rules
from velocity.inference.streaming import prepare_disk, shapes_of
from velocity.inference.text import Spoken
from velocity.inference.zero_engine import ZeroEngine
from velocity.models.load import DTYPES, load_model, partitioned
from velocity.terminal import say

CPU_PROMPT_TOKENS, GPU_PROMPT_TOKENS = 4096, 32768  # of one forward: more at once are no faster, and take memory


def build_engine(job: InferenceJob, folder: Path, config: Mapping[str, Any], ranks: Ranks, longest: int) -> Engine:
    """The engine that the plan chose, measured to compute what the model is; `longest` bounds a row's tokens."""
    name = job.generation.engine
    if name == "zero":
        engine, expected = _zero(job, folder, config, ranks)
    elif name == "deepspeed":
        engine, expected = _split(job, folder, config, ranks)
    else:
        model = _load(job, folder)
        expected = plain_logps(model)
        engine = TransformersEngine(model, ranks)
    check_engine(engine, expected, rolls=rolls(engine.model.config, longest))
    return engine


def _split(job: InferenceJob, folder: Path, config: Mapping[str, Any], ranks: Ranks) -> tuple[Engine, Sequence[Tensor]]:
    """With fused kernels where the job asks for them and they compute what the model is; else without."""
    model = _load(job, folder)
    expected = plain_logps(model)
    if config["replace_with_kernel_inject"]:
        try:
            fused = DeepSpeedInferenceEngine(model, config, ranks)
            gap = engine_gap(fused, expected, rolls=False)
        except Exception as error:  # what compilers, old layouts and new transformers bring about has no common type
            gap, why = math.inf, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        else:
            why = f"off by {gap:.2g} nats"
        failed = torch.tensor([0.0 if gap <= TOLERANCE else 1.0], device=ranks.device)
        if comm.sum_over_ranks(failed).item() == 0:
            return fused, expected
        if ranks.first:
            say(f"kernel injection does not compute what {type(model).__name__} is ({why}); going on without it")
        model = _load(job, folder)
    plain = {**config, "replace_with_kernel_inject": False}
    return DeepSpeedInferenceEngine(model, plain, ranks), expected


def _zero(job: InferenceJob, folder: Path, config: Mapping[str, Any], ranks: Ranks) -> tuple[Engine, Sequence[Tensor]]:
    """Its weights are split, and moved to where they wait, while they load."""
    comm.prepare_deepspeed()
    if job.strategy.offload.parameters == "nvme":
        prepare_disk(Path(config["zero_optimization"]["offload_param"]["nvme_path"]), ranks)
        comm.wait_for_all()
    dtype, gpu = DTYPES[str(job.strategy.precision)], ranks.device.type == "cuda"
    shapes = shapes_of(folder, dtype, ranks.world_size, remote_code=job.model.trust_remote_code)
    settings = streamed(config, shapes, ranks.world_size, gpu=gpu)
    with partitioned(settings):
        model = _load(job, folder, settings)
        engine = ZeroEngine(model, settings, ranks)
    return engine, plain_logps(model)


def build_decoder(
    job: InferenceJob, engine: Engine, spoken: Spoken, longest: int, shared: Sequence[int]
) -> RollingBatch | BeamSearch:
    """What turns requests into completions: a rolling batch, or beams. All prompts begin with the ids `shared`."""
    most = limits(job, engine.device.type)
    if job.generation.beams > 1:
        return BeamSearch(engine, job.generation, most, spoken.ends)
    rules = Rules(spoken.ends, spoken.stopped)
    return RollingBatch(engine, job.generation, most, rules, longest, shared)


def longest_row(job: InferenceJob, lengths: NDArray[np.int32]) -> int:
    """Bounds the tokens of a prompt with its completion; `lengths` are the prompts'."""
    return int(lengths.max()) + job.generation.max_new_tokens


def _load(job: InferenceJob, folder: Path, zero3: dict[str, Any] | None = None) -> Any:
    model = load_model(
        folder, job.model, str(job.strategy.precision), attention_name=attention_of(job, folder), zero3=zero3
    )
    return model.eval().requires_grad_(requires_grad=False)


def attention_of(job: InferenceJob, folder: Path) -> str:
    """The attention implementation: sdpa, where the job names none and the model softens no scores."""
    from transformers import AutoConfig

    if job.model.attention not in ("auto", "varlen"):
        return job.model.attention
    config = AutoConfig.from_pretrained(str(folder), trust_remote_code=job.model.trust_remote_code)
    softens = getattr(config.get_text_config(), "attn_logit_softcapping", None)
    return "sdpa" if softens is None else "eager"


def limits(job: InferenceJob, device_type: str) -> Limits:
    """What a rank may have at once."""
    rows, tokens = job.batch.rows, job.batch.tokens
    if not isinstance(rows, int) or not isinstance(tokens, int):
        raise UserError("the batch was not planned", "batch", "this is a defect of Velocity; report it")
    return Limits(rows, tokens, CPU_PROMPT_TOKENS if device_type == "cpu" else GPU_PROMPT_TOKENS)
