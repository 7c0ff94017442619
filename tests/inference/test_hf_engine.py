"""Plain transformers as an engine: what it hands to a model and what it makes of the answer.

Shape letters: B rows, Q tokens of a row in this forward, K places in the cache, V vocabulary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.generating import family
from velocity.distributed.comm import Ranks
from velocity.inference.cache import RollingCache, plain_cache
from velocity.inference.engine import Step
from velocity.inference.hf_engine import TransformersEngine, accepted, last_logits, one_token


class Modern(nn.Module):
    """Takes positions, and computes the logits of the last tokens alone where it is asked to."""

    def forward(self, input_ids: Tensor, position_ids: Tensor, logits_to_keep: int = 0, **others: Any) -> Any:
        self.asked = {"position_ids": position_ids, "logits_to_keep": logits_to_keep, **others}
        logits_BQV = nn.functional.one_hot(input_ids, 9).to(torch.bfloat16)
        return SimpleNamespace(logits=logits_BQV[:, -logits_to_keep:])


class Old(nn.Module):
    """Takes neither, as BLOOM and MPT."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        self.asked = {"attention_mask": attention_mask, "past_key_values": past_key_values, "use_cache": use_cache}
        return SimpleNamespace(logits=nn.functional.one_hot(input_ids, 9).to(torch.bfloat16))


def step() -> Step:
    ids_BQ = torch.tensor([[1, 2, 3], [4, 5, 6]])
    return Step(ids_BQ, torch.tensor([[0, 1, 2], [7, 8, 9]]), torch.ones(2, 3, dtype=torch.long), RollingCache())


@pytest.mark.parametrize("kind", [Modern, Old])
def test_the_logits_of_each_rows_last_token_come_back_in_fp32(kind: type[nn.Module]):
    model, asked = kind(), step()
    logits_BV = last_logits(model, asked, accepted(model))
    assert logits_BV.dtype == torch.float32
    assert logits_BV.argmax(dim=-1).tolist() == [3, 6]


def test_positions_mask_and_cache_reach_a_model_that_takes_them():
    model, asked = Modern(), step()
    last_logits(model, asked, accepted(model))
    assert model.asked == {
        "position_ids": asked.positions_BQ, "logits_to_keep": 1, "attention_mask": asked.mask,
        "past_key_values": asked.cache, "use_cache": True,
    }  # fmt: skip


def test_a_model_is_not_given_what_it_does_not_take():
    model, asked = Old(), step()
    last_logits(model, asked, accepted(model))
    assert model.asked == {"attention_mask": asked.mask, "past_key_values": asked.cache, "use_cache": True}


def test_an_engine_of_one_rank_agrees_with_itself():
    engine = TransformersEngine(family("Llama"), Ranks(rank=1, world_size=2))
    assert engine.leads
    assert engine.any(True, False) == (True, False)
    assert engine.agree({"shard": 3}) == {"shard": 3}
    tokens_B = torch.tensor([1, 2])
    assert engine.same(tokens_B) is tokens_B
    engine.idle()
    engine.close()


def test_a_forward_of_next_to_nothing_is_one_token_in_one_row():
    model = family("Llama")
    asked = one_token(torch.device("cpu"), plain_cache(model.config))
    logits_BV = TransformersEngine(model, Ranks()).forward(asked)
    assert logits_BV.shape == (1, 97)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([[0]])).logits[:, -1]
    torch.testing.assert_close(logits_BV, expected)
