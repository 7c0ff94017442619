"""DeepSpeed Inference: each layer's weights are split over the ranks of a group, which compute every row together."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.errors import JobError, UserError
from velocity.inference.engine import Step
from velocity.inference.hf_engine import accepted, last_logits
from velocity.models.load import DTYPES

# Measured on two ranks, in fp32, against the whole model (docs/guides/inference.md). Others come out wrong (persimmon),
# end in an error (phi3, olmo2) or leave a rank waiting for ever (phimoe), so what is not here is refused.
SPLITS = frozenset({
    "apertus", "arcee", "biogpt", "bloom", "cohere", "cohere2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma2",
    "gemma3_text", "glm", "glm4", "gpt_neo", "gpt_neox", "gptj", "granite", "granitemoe", "helium", "llama", "mistral",
    "mixtral", "mpt", "nemotron", "olmo", "opt", "phi", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss",
    "smollm3", "stablelm", "starcoder2", "xglm",
})  # fmt: skip
GARBLES = {"stablelm": "qk_layernorm", "cohere": "use_qk_norm"}  # the same architectures with this setting


class DeepSpeedInferenceEngine:
    """A model under deepspeed.init_inference, split over a group of ranks."""

    lockstep = False
    recovers = False  # a rank that leaves a forward half-way leaves its group waiting

    def __init__(self, model: Any, config: Mapping[str, Any], ranks: Ranks) -> None:
        """UserError, by name, for an architecture that DeepSpeed does not split right."""
        size = int(config["tensor_parallel"]["tp_size"])
        if size > 1:
            check_splits(model.config)
        comm.prepare_deepspeed()
        import deepspeed

        self.device, self.leads, self._first = ranks.device, ranks.rank % size == 0, ranks.rank // size * size
        self._ranks = _group(size, ranks) if size > 1 else None
        fused = "replace_with_kernel_inject"
        settings: dict[str, Any] = {"dtype": DTYPES[config["dtype"]], fused: config[fused]}
        if self._ranks is not None:
            # with one of the two alone it splits nothing, or takes the first ranks for the only group
            settings["tensor_parallel"] = {"tp_size": size, "mpu": _Groups(self._ranks), "tp_group": self._ranks}
        takes, buffers = accepted(model), {name: buffer.clone() for name, buffer in model.named_buffers()}
        whole = sum(parameter.numel() for parameter in model.parameters())
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the layers that it splits
            self.model: Any = deepspeed.init_inference(model, **settings).module
        self._takes = takes
        for name, buffer in buffers.items():  # it rounds them to 16 bit, rotary frequencies among them
            owner, _, key = name.rpartition(".")
            setattr(self.model.get_submodule(owner), key, buffer.to(self.device))
        if size > 1 and sum(parameter.numel() for parameter in self.model.parameters()) >= whole:
            what = "DeepSpeed Inference split none of the model's weights"
            raise JobError(what, type(model).__name__, "this is a defect of Velocity; report it")

    def forward(self, step: Step) -> Tensor:
        """Return logits_BV in fp32: of each row's last token."""
        return last_logits(self.model, step, self._takes)

    def run(self, use: Callable[[Any], Tensor]) -> Tensor:
        """Return what a use of the model gives: the same on all ranks of our group, which use it alike."""
        return use(self.model)

    def idle(self) -> None:
        """No other group waits for us, and our own has the same rows."""

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True where it is so on any rank of our group."""
        if self._ranks is None:
            return flags
        counts = torch.tensor(flags, dtype=torch.float32, device=self.device)
        dist.all_reduce(counts, group=self._ranks)
        return tuple(count > 0 for count in counts.tolist())

    def same(self, tokens_B: Tensor) -> Tensor:
        """The leader's tokens, on all ranks of our group: rounding must not part them."""
        if self._ranks is not None:
            dist.broadcast(tokens_B, self._first, group=self._ranks)
        return tokens_B

    def close(self) -> None:
        """There is nothing outside the process."""

    def agree(self, value: Any) -> Any:
        """What the leader says, on all ranks of our group."""
        if self._ranks is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, self._first, group=self._ranks)
        return box[0]


def check_splits(config: Any) -> None:
    """Nothing, or UserError for an architecture that DeepSpeed does not split right."""
    kind, setting = config.get_text_config().model_type, GARBLES.get(config.get_text_config().model_type, "")
    if kind not in SPLITS or getattr(config.get_text_config(), setting, False):
        what = f"DeepSpeed Inference does not split {kind}{f' with {setting}' if kind in SPLITS else ''} right"
        raise UserError(what, "generation.engine", "set generation.engine: transformers, or zero")


class _Groups:
    """What DeepSpeed asks of whoever made the groups."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        return self._group


def _group(size: int, ranks: Ranks) -> dist.ProcessGroup:
    """Ours, of so many neighbours; every rank makes all groups, as torch asks for."""
    made = [dist.new_group(range(first, first + size)) for first in range(0, ranks.world_size, size)]
    ours: dist.ProcessGroup = made[ranks.rank // size]
    return ours
