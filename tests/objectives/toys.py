"""Policies and batches of answers for arithmetic: every token's log-probability is a number on the page, in fp64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from velocity.batch import IGNORED, Batch
from velocity.data.collate import Piece, collate


class Toy:
    """A policy that gives token t the log-probability logps[t], wherever it stands."""

    def __init__(self, *logps: float) -> None:
        self.logps_V = torch.tensor(logps, dtype=torch.float64, requires_grad=True)

    def __call__(self, batch: Batch) -> Tensor:
        return torch.where(batch.labels_BS == IGNORED, 0.0, self.logps_V[batch.labels_BS.clamp(min=0)])

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        return value

    def gradient(self, total: Tensor) -> list[float]:
        """What a token's log-probability adds to a loss."""
        (gradient_V,) = torch.autograd.grad(total, self.logps_V, retain_graph=True)
        found: list[float] = gradient_V.tolist()
        return found


class WithAnotherRank(Toy):
    """A toy beside which another rank counted these numbers."""

    def __init__(self, *logps: float, counted: Sequence[float]) -> None:
        super().__init__(*logps)
        self.counted = torch.tensor(counted)

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        return value + self.counted.to(value.dtype)


def answers(tokens: Sequence[Sequence[int]], **fields: Any) -> Batch:
    """A row an answer, which holds a token of a prompt and the answer's tokens; `fields` are those of Answers."""
    rows = [
        [Piece(np.zeros(len(row), dtype=np.int32), np.array(row, dtype=np.int32), answer=number)]
        for number, row in enumerate(tokens)
    ]
    return collate(rows, answers=fields)


def pairs(*both: tuple[list[int], list[int]], reference: Sequence[float] | None = None) -> Batch:
    """Pairs of a chosen and a rejected answer, as tokens; `reference` is of all the chosen ones, then the rejected."""
    known = {} if reference is None else {"reference_A": torch.tensor(reference, dtype=torch.float64)}
    return answers([*(chosen for chosen, _ in both), *(rejected for _, rejected in both)], **known)
