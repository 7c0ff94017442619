"""ZeRO-Inference: weights wait split over ranks, in host memory or on a fast disk, and pass through the device.

All ranks compute in step, each with rows of its own: a forward gathers every weight, so each rank runs as many.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.inference.cache import plain_cache
from velocity.inference.engine import Step
from velocity.inference.hf_engine import accepted, last_logits, one_token


class ZeroEngine:
    """A model under deepspeed.initialize with ZeRO 3 and without an optimizer."""

    lockstep = True
    recovers = False  # a rank that leaves a forward half-way leaves the others waiting
    leads = True

    def __init__(self, model: Any, config: Mapping[str, Any], ranks: Ranks) -> None:
        """`model` was loaded under the same configuration, so its weights are split already."""
        comm.prepare_deepspeed()
        import deepspeed

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._engine: Any = deepspeed.initialize(model=_Used(model), config=dict(config))[0]
        self._engine.eval()
        self.model, self.device, self._writes = model, ranks.device, ranks.first
        self._takes = accepted(model)
        self._swap = config["zero_optimization"].get("offload_param", {}).get("nvme_path")

    def forward(self, step: Step) -> Tensor:
        """Return logits_BV in fp32: of each row's last token."""
        return self.run(lambda model: last_logits(model, step, self._takes))

    def run(self, use: Callable[[Any], Tensor]) -> Tensor:
        """Return what a use of the model gives; all ranks use theirs in step, each with rows of its own."""
        # through the engine, not the module: it finds weights that a module reads though they are another's
        result: Tensor = self._engine(use)
        return result

    def idle(self) -> None:
        """Take part in the forward of the others."""
        self.forward(one_token(self.device, plain_cache(self.model.config)))

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, True where it is so on any rank."""
        counts = comm.sum_over_ranks(torch.tensor(flags, dtype=torch.float32, device=self.device))
        return tuple(count > 0 for count in counts.tolist())

    def same(self, tokens_B: Tensor) -> Tensor:
        """Nobody shares our rows."""
        return tokens_B

    def agree(self, value: Any) -> Any:
        """Nobody shares our rows."""
        return value

    def close(self) -> None:
        """Nothing of the weights is left on the disk."""
        if self._swap is not None and self._writes:
            shutil.rmtree(self._swap, ignore_errors=True)


class _Used(nn.Module):
    """A model whose forward is whatever use of it is given: DeepSpeed fetches weights inside its own forward alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, use: Callable[[Any], Tensor]) -> Tensor:
        return use(self.model)
