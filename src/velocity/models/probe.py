"""Measures, before training, whether packed sequences see each other and whether scores are those of the logits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from velocity.batch import IGNORED, Batch
from velocity.errors import UserError
from velocity.models.scorer import CausalScorer

LENGTH = 8
TOLERANCE = 0.05  # nats; a leak moves log-probabilities by whole ones, 16-bit rounding by hundredths


def _row(seeds: tuple[int, ...], vocabulary: int) -> Batch:
    """One row of random sequences, of which everything is trained on."""
    sequences = [torch.randint(vocabulary, (LENGTH,), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    labels = [torch.cat([ids[1:], torch.tensor([IGNORED])]) for ids in sequences]
    positions = torch.arange(LENGTH).repeat(len(seeds))
    return Batch(torch.cat(sequences)[None], positions[None], torch.cat(labels)[None], ((LENGTH,) * len(seeds),))


def isolation_gap(policy: Callable[[Batch], Tensor], vocabulary: int) -> float:
    """How far a sequence's log-probabilities move when its neighbour in the row changes: 0 where they are isolated."""
    with torch.no_grad():
        one, other = (policy(_row((seed, 0), vocabulary))[0, LENGTH:] for seed in (1, 2))
    return float((one - other).abs().max())


def check_isolation(policy: Callable[[Batch], Tensor], vocabulary: int) -> None:
    """Nothing, or UserError where packed sequences see each other."""
    gap = isolation_gap(policy, vocabulary)
    if not gap <= TOLERANCE:
        what = f"packed sequences see each other with this model's attention (by {gap:.2g} nats)"
        raise UserError(what, "model.attention", "set model.attention: auto, or data.packing: false")


@torch.no_grad()
def sharing_gap(policy: Callable[[Batch], Tensor], vocabulary: int) -> float:
    """How far a second answer's log-probabilities are from those it has in a row of its own with its prompt."""
    first, second = (_row((0, seed), vocabulary) for seed in (1, 2))  # a prompt and an answer each, as one sequence
    ids, labels = (
        torch.cat([first_BS, second_BS[:, LENGTH - 1 :]], dim=1)
        for first_BS, second_BS in ((first.input_ids_BS, second.input_ids_BS), (first.labels_BS, second.labels_BS))
    )
    places = torch.arange(2 * LENGTH)
    positions = torch.cat([places, places[LENGTH - 1 :]])
    shared = Batch(ids, positions[None], labels, ((2 * LENGTH, LENGTH + 1),), shared_B=((0, LENGTH - 1),))
    alone = Batch(second.input_ids_BS, places[None], second.labels_BS, ((2 * LENGTH,),))
    return float((policy(shared)[0, 2 * LENGTH :] - policy(alone)[0, LENGTH - 1 :]).abs().max())


def check_sharing(policy: Callable[[Batch], Tensor], vocabulary: int) -> None:
    """Nothing, or UserError where two answers cannot share their prompt."""
    gap = sharing_gap(policy, vocabulary)
    if not gap <= TOLERANCE:
        what = f"two answers cannot share their prompt with this model's layers (off by {gap:.2g} nats)"
        raise UserError(what, "model.attention", "set model.attention: sdpa, and data.packing: false")


@torch.no_grad()
def own_scores(scorer: CausalScorer, device: torch.device | None = None) -> Tensor:
    """logps_S of the probe's sequence, from the logits of the model's own forward.

    `device` is where it computes, where its weights wait elsewhere.
    """
    ids_S = _row((0,), scorer.vocabulary).input_ids_BS[0].to(device or next(scorer.parameters()).device)
    logps_SV = torch.log_softmax(scorer.whole_logits(ids_S)[:-1].float(), dim=-1)
    return logps_SV.gather(-1, ids_S[1:, None])[:, 0]


@torch.no_grad()
def split_gap(policy: Callable[[Batch], Tensor], vocabulary: int, expected_S: Tensor) -> float:
    """How far the policy's log-probabilities of the probe's sequence are from these, perhaps of another device."""
    logps_S = policy(_row((0,), vocabulary))[0, :-1]
    return float((logps_S - expected_S.to(logps_S.device)).abs().max())


def scoring_gap(policy: Callable[[Batch], Tensor], scorer: CausalScorer) -> float:
    """How far the policy's log-probabilities are from those of the model's own logits."""
    return split_gap(policy, scorer.vocabulary, own_scores(scorer))


def check_split(policy: Callable[[Batch], Tensor], vocabulary: int, expected_S: Tensor, axis: str = "tensor") -> None:
    """Nothing, or UserError where a model that is split along `axis` computes something else than the whole one."""
    gap = split_gap(policy, vocabulary, expected_S)
    if not gap <= TOLERANCE:
        what = f"this model computes something else when it is split (off by {gap:.2g} nats)"
        raise UserError(what, f"strategy.{axis}", f"set strategy.{axis}: 1, with strategy.zero: 3")


def check_scores(policy: Callable[[Batch], Tensor], scorer: CausalScorer) -> None:
    """Nothing, or UserError where the architecture does more behind its layers than the scorer knows."""
    gap = scoring_gap(policy, scorer)
    if not gap <= TOLERANCE:
        what = f"this architecture's logits are not its head's (off by {gap:.2g} nats): it is not supported"
        raise UserError(what, "model.path", "choose another model, and report this one's name")
