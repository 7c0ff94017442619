"""One process, plain PyTorch: the reference that every other engine is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from velocity.batch import Batch
from velocity.distributed.engine import Loss, Objective, StepStats, learn_one_by_one, set_rate
from velocity.distributed.flats import Flat, named, whole_flats
from velocity.distributed.gradients import clip_or_drop


class TorchEngine:
    """A scorer and a PyTorch optimizer, in fp32."""

    def __init__(self, scorer: nn.Module, optimizer: torch.optim.Optimizer, clipping: float) -> None:
        self.scorer, self.optimizer, self.clipping = scorer, optimizer, clipping

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label."""
        logps_BS: Tensor = self.scorer(*batch.inputs(torch.device("cpu")))
        return logps_BS

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        self.scorer.train(mode)

    def learn(
        self, objective: Objective, batches: Sequence[Batch], units: int, learning_rate: float
    ) -> tuple[list[Loss], StepStats]:
        """One optimizer step; return each batch's loss."""
        return learn_one_by_one(self, objective, batches, units, learning_rate)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient."""
        loss.backward()  # type: ignore[no-untyped-call]

    def step(self, learning_rate: float) -> StepStats:
        """Clip, update, forget the gradients."""
        set_rate(self.optimizer.param_groups, learning_rate)
        stats = clip_or_drop(self.scorer.parameters(), self.clipping)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return stats

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    def any_rank(self, flag: bool) -> bool:
        """The flag itself."""
        return flag

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        """Each parameter with its state."""
        return whole_flats(self.optimizer, named(self.scorer), None, start=start)

    def refresh(self) -> None:
        """Nothing: what computes are the flat tensors themselves."""

    @property
    def scaler(self) -> dict[str, Any]:
        """Empty: fp32 needs none."""
        return {}

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole weights of what is trained."""
        trained = ((name, value) for name, value in self.scorer.named_parameters() if value.requires_grad)
        return {name.removeprefix("model."): value.detach().cpu().clone() for name, value in trained}
