"""A frozen model that scores batches, its weights split over the ranks: a live reference. It is never trained."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from velocity.batch import Batch
from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.distributed.tensor import without_groups


class FrozenEngine:
    """A scorer under deepspeed.initialize with ZeRO 3 and without an optimizer."""

    def __init__(self, scorer: nn.Module, config: Mapping[str, Any], ranks: Ranks) -> None:
        comm.prepare_deepspeed()
        import deepspeed

        scorer.requires_grad_(requires_grad=False)
        with warnings.catch_warnings(), without_groups():
            warnings.simplefilter("ignore")
            self.engine: Any = deepspeed.initialize(model=scorer, config=dict(config))[0]
        self.engine.eval()
        self.ranks = ranks

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label."""
        logps_BS: Tensor = self.engine(*batch.inputs(self.ranks.device))
        return logps_BS
