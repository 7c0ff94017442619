"""What a generate job is predicted to take: weights, cache, and tokens a second, for each engine that may run it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from velocity.config.inference import InferenceJob, with_engine
from velocity.config.job import LoadedJob
from velocity.errors import UserError
from velocity.planner.hardware import GIB
from velocity.planner.inference import cache_bytes, resolve
from velocity.planner.machines import CORE_FLOPS, DISK_RATE, HOST_RATE, Cluster
from velocity.planner.size import ModelSize, model_size
from velocity.planner.speed import EFFICIENCY, LINK_EFFICIENCY

PROMPT_TOKENS = 256  # a guess, where the job limits its prompts not


@dataclass(frozen=True)
class Generation:
    """A job without `auto`, with the bytes of a rank's device and its speed."""

    loaded: LoadedJob[InferenceJob]
    weights: float
    cache: float
    logits: float
    host: float
    nvme: float
    room: float
    tokens_per_second: float

    @property
    def total(self) -> float:
        """Bytes of a rank's device."""
        return self.weights + self.cache + self.logits

    @property
    def words(self) -> str:
        """The engine in a few words."""
        job = self.loaded.job
        split = f", tensor {job.strategy.tensor}" if job.strategy.tensor != 1 else ""
        away = f", weights on {job.strategy.offload.parameters}" if job.strategy.offload.parameters != "none" else ""
        return f"engine {job.generation.engine}{split}{away}, {job.batch.rows} rows"


def plans(loaded: LoadedJob[InferenceJob], cluster: Cluster, model_folder: Path) -> list[Generation]:
    """The planner's choice, then what else the job leaves open, the fastest first; empty where no size is known."""
    size = model_size(model_folder)
    if size is None:
        return []
    first = _taken(resolve(loaded, cluster, model_folder), cluster, size)
    others = []
    for engine in ("transformers", "deepspeed", "zero"):
        job = loaded.job
        if job.generation.engine != "auto" or engine == first.loaded.job.generation.engine:
            continue
        try:
            made = LoadedJob(with_engine(job, engine), loaded.origins, loaded.path)
            others.append(_taken(resolve(made, cluster, model_folder), cluster, size))
        except UserError:
            continue  # what cannot be is no alternative
    return [first, *sorted(others, key=lambda one: (one.total > one.room, -one.tokens_per_second))]


def _taken(loaded: LoadedJob[InferenceJob], cluster: Cluster, size: ModelSize) -> Generation:
    """What a resolved job takes of a rank, and how fast all of them are together."""
    job, hardware = loaded.job, cluster.hardware
    strategy, processes = job.strategy, int(job.launch.processes)
    each = 4 if strategy.precision == "fp32" else 2
    group = int(strategy.tensor) if job.generation.engine == "deepspeed" else 1
    whole = float(size.parameters * each)
    streamed = job.generation.engine == "zero"
    layer = size.layer * each
    resident = 2 * layer + size.embedding * each if streamed else whole / group
    share = whole / processes if streamed else 0.0
    prompt = job.prompt_tokens or PROMPT_TOKENS
    rows = int(job.batch.rows)
    places = min(int(job.batch.tokens), rows * (prompt + job.generation.max_new_tokens))
    cache = places * cache_bytes(size, "fp32" if each == 4 else "bf16") / group
    where = strategy.offload.parameters if streamed else "none"
    here = processes // cluster.nodes  # on each node
    room = hardware.gpus[0][1] * GIB if hardware.gpus else hardware.memory_gib * GIB / here
    read = resident + cache / 2
    if hardware.gpus:
        gpu = cluster.gpu
        step = max(read / gpu.memory_rate, 2.0 * size.met * rows / group / (gpu.flops * EFFICIENCY))
        step = max(step, whole / (gpu.host_link * LINK_EFFICIENCY)) if where != "none" else step
    else:
        step = max(whole / group / (HOST_RATE / 4), 2.0 * size.met * rows / (CORE_FLOPS * hardware.cores / here))
    step = max(step, whole / DISK_RATE) if where == "nvme" else step
    return Generation(
        loaded=loaded,
        weights=resident + (share if where == "none" else 0.0),
        cache=cache,
        logits=rows * size.vocabulary * 4.0,
        host=share if where == "cpu" else 0.0,
        nvme=share if where == "nvme" else 0.0,
        room=room,
        tokens_per_second=rows * (processes // group) / step,
    )


def describe(found: list[Generation], cluster: Cluster) -> dict[str, Any]:
    """The plan as plain values: the choice with its reasons, then the others."""
    rows = [
        {
            "words": one.words, "fits": one.total <= one.room, "device_bytes": round(one.total),
            "device": {"weights": round(one.weights), "cache": round(one.cache), "logits": round(one.logits)},
            "host_bytes": round(one.host), "nvme_bytes": round(one.nvme),
            "tokens_per_second": round(one.tokens_per_second, 1),
            "short_bytes": {"device": round(one.total - one.room)} if one.total > one.room else {},
        }
        for one in found
    ]  # fmt: skip
    origins = found[0].loaded.origins if found else {}
    reasons = {key: why.removeprefix("planner: ") for key, why in origins.items() if why.startswith("planner: ")}
    machine = {"name": cluster.name, "kind": cluster.kind, "nodes": cluster.nodes, "guesses": list(cluster.guesses)}
    task = found[0].loaded.job.task if found else ""
    return {"task": task, "machine": machine, "chosen": rows[0] if rows else None, "candidates": rows,
            "reasons": reasons}  # fmt: skip


def print_plans(described: dict[str, Any]) -> None:
    """The same for a person, on standard output."""
    if described["chosen"] is None:
        print("the model's size is not known yet: its config.json is not here")
        return
    print(f"on {described['machine']['name']}, best first")
    for one in described["candidates"]:
        parts = ", ".join(f"{name} {count / GIB:,.2f}" for name, count in one["device"].items())
        lacks = f"  lacks {one['short_bytes']['device'] / GIB:,.1f} GiB" if one["short_bytes"] else ""
        total = one["device_bytes"] / GIB
        rate = f"{one['tokens_per_second']:>9,.0f} tokens/s"
        print(f"  {one['words']:<44} {total:>8,.2f} GiB a rank ({parts}) {rate}{lacks}")
