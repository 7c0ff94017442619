"""The probe refuses a policy that leaks between packed sequences, or that scores other than the model's logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.making import tiny_config, tiny_model
from velocity.batch import IGNORED, Batch
from velocity.errors import UserError
from velocity.models import attention
from velocity.models.probe import (
    TOLERANCE,
    check_isolation,
    check_scores,
    check_sharing,
    isolation_gap,
    scoring_gap,
    sharing_gap,
)
from velocity.models.scorer import CausalScorer

V = 50


class Toy:
    """Scores a token by the sum of what it sees: its own sequence and what that shares, or the whole row up to it."""

    def __init__(self, *, leaks: bool, shares: bool = True) -> None:
        self.leaks, self.shares = leaks, shares

    def __call__(self, batch: Batch) -> Tensor:
        ids_BS = batch.input_ids_BS.float()
        seen_BS = ids_BS.cumsum(1)
        if not self.leaks:
            lengths, start, before = batch.lengths_B[0], 0, 0
            for length, shared in zip(
                lengths, batch.shared_B[0] if batch.shared_B else [0] * len(lengths), strict=True
            ):
                seen = ids_BS[:, before : before + shared].sum() if self.shares else 0.0
                seen_BS[:, start : start + length] = seen + ids_BS[:, start : start + length].cumsum(1)
                before, start = start, start + length
        return torch.where(batch.labels_BS == IGNORED, torch.zeros_like(seen_BS), -seen_BS)


def scorer(name: str = attention.NAME) -> CausalScorer:
    attention.register()
    model = tiny_model(tiny_config(V))
    model.set_attn_implementation(name)
    return CausalScorer(model, max_tokens=64)


def policy_of(made: CausalScorer) -> Any:
    return lambda batch: made(*batch.inputs(torch.device("cpu")))


def test_a_policy_that_isolates_passes():
    assert isolation_gap(Toy(leaks=False), V) == 0
    check_isolation(Toy(leaks=False), V)


def test_a_policy_that_sees_its_neighbour_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="packed sequences see each other with this model's attention") as caught:
        check_isolation(Toy(leaks=True), V)
    assert "model.attention: auto, or data.packing: false" in str(caught.value)


def test_a_policy_that_gives_no_number_is_refused():
    with pytest.raises(UserError, match="see each other"):
        check_isolation(lambda batch: torch.full(batch.labels_BS.shape, float("nan")), V)


@pytest.mark.parametrize("name", [attention.NAME, "eager", "sdpa"])
def test_a_real_model_isolates_with_every_implementation(name: str):
    assert isolation_gap(policy_of(scorer(name)), V) < 1e-5


def test_a_real_model_that_takes_a_row_for_one_sequence_is_refused():
    # what sdpa does with a mask of ones, or with a cache: positions restart, attention does not
    made = scorer("sdpa")

    def one_mask(batch: Batch) -> Tensor:
        hidden = made.model.base_model(
            input_ids=batch.input_ids_BS, position_ids=batch.position_ids_BS,
            attention_mask=torch.ones_like(batch.input_ids_BS), use_cache=False,
        ).last_hidden_state  # fmt: skip
        logps_BSV = made.model.get_output_embeddings()(hidden).log_softmax(-1)
        labels = batch.labels_BS.clamp(min=0)
        return logps_BSV.gather(-1, labels[..., None])[..., 0] * (batch.labels_BS != IGNORED)

    gap = isolation_gap(one_mask, V)
    assert gap > 2 * TOLERANCE
    with pytest.raises(UserError, match="see each other"):
        check_isolation(one_mask, V)


def test_a_policy_whose_second_answer_sees_the_shared_prompt_passes():
    assert sharing_gap(Toy(leaks=False), V) == 0
    check_sharing(Toy(leaks=False), V)


@pytest.mark.parametrize("toy", [Toy(leaks=False, shares=False), Toy(leaks=True)], ids=["nothing", "everything"])
def test_a_policy_whose_second_answer_sees_less_or_more_is_refused_with_the_remedy(toy: Toy):
    with pytest.raises(UserError, match="two answers cannot share their prompt with this model's layers") as caught:
        check_sharing(toy, V)
    assert "model.attention: sdpa, and data.packing: false" in str(caught.value)


def test_a_real_model_shares_a_prompt_with_variable_length_attention_alone():
    assert sharing_gap(policy_of(scorer()), V) < 1e-5
    for name in ("eager", "sdpa"):  # they isolate by positions that restart, and know nothing of what is shared
        with pytest.raises(UserError, match="cannot share their prompt"):
            check_sharing(policy_of(scorer(name)), V)


def test_a_scorer_scores_as_its_models_logits_say():
    made = scorer()
    assert scoring_gap(policy_of(made), made) < 1e-5
    check_scores(policy_of(made), made)


def test_an_architecture_that_does_more_behind_its_layers_is_refused():
    made = scorer()
    forward = made.model.forward

    def scaled(*arguments: Any, **named: Any) -> Any:
        output = forward(*arguments, **named)
        output.logits = output.logits * 0.5  # a rule that the scorer does not know
        return output

    made.model.forward = scaled
    with pytest.raises(UserError, match="this architecture's logits are not its head's"):
        check_scores(policy_of(made), made)
