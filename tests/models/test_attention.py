"""Attention inside each sequence of a packed row equals attention over each sequence alone, backward too.

Shape letters: H heads, T tokens of all sequences, D head size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.making import tiny_config, tiny_model
from velocity.models import attention
from velocity.models.attention import varlen_attention

LENGTHS = (5, 1, 9, 3)
T = sum(LENGTHS)
BOUNDS = torch.tensor([0, 5, 6, 15, 18], dtype=torch.int32)


def inputs(heads: int, kv_heads: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each 1 x H x T x 8, that want a gradient."""
    generator = torch.Generator().manual_seed(seed)

    def random(count: int) -> Tensor:
        return torch.randn((1, count, T, 8), generator=generator, dtype=torch.float64).requires_grad_()

    return random(heads), random(kv_heads), random(kv_heads)


def masked(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """The same with one mask over the whole row, written out."""
    sequence_T = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    place = torch.arange(T)
    distance_TT = place[:, None] - place[None, :]
    mask_TT = (sequence_T[:, None] == sequence_T[None, :]) & (distance_TT >= 0)
    if window is not None:
        mask_TT &= distance_TT < window
    groups = query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask_TT, scale=scale).transpose(1, 2)


def varlen(query: Tensor, key: Tensor, value: Tensor, **others: Any) -> Tensor:
    bounds = {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS, "max_length_q": 9, "max_length_k": 9}
    return varlen_attention(nn.Identity(), query, key, value, None, **cast(Any, {**bounds, **others}))[0]


@pytest.mark.parametrize("window", [None, 1, 3, 5, 100])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_values_and_gradients_equal_those_under_a_mask(kv_heads: int, window: int | None):
    ours, theirs = inputs(4, kv_heads), inputs(4, kv_heads)
    weight = torch.randn(1, T, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = varlen(*ours, scaling=0.3, sliding_window=window)
    other = masked(*theirs, scale=0.3, window=window)
    assert one.shape == (1, T, 4, 8)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    (one * weight).sum().backward()
    (other * weight).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-12)


def test_a_sequence_does_not_change_with_its_neighbours():
    query, key, value = inputs(4, 2)
    before = varlen(query, key, value)
    key.data[:, :, :6] += 7  # the first two sequences
    value.data[:, :, 15:] += 7  # the last
    after = varlen(query, key, value)
    assert torch.equal(before[:, 6:15], after[:, 6:15])
    assert not torch.equal(before[:, :5], after[:, :5])


# the second sequence goes on from the first one's first 3 tokens, the fourth from all 9 of the third
SHARED = (0, 3, 0, 9)
KEY_BOUNDS = torch.tensor([0, 5, 9, 18, 30], dtype=torch.int32)
KEY_PLACES = torch.tensor([*range(5), *range(3), 5, *range(6, 15), *range(6, 15), *range(15, 18)])


@pytest.mark.parametrize("window", [None, 1, 4, 100])
@pytest.mark.parametrize("kv_heads", [4, 1])
def test_a_sequence_that_goes_on_from_another_ones_beginning_equals_the_two_as_one(kv_heads: int, window: int | None):
    ours, theirs = inputs(4, kv_heads), inputs(4, kv_heads)
    keys: dict[str, Any] = {"cu_seq_lens_k": KEY_BOUNDS, "max_length_k": 12, "key_places_K": KEY_PLACES}
    one = varlen(*ours, scaling=0.3, sliding_window=window, **keys)
    starts = (0, 5, 6, 15)
    parts = []
    for number, (start, length, shared) in enumerate(zip(starts, LENGTHS, SHARED, strict=True)):
        before = starts[number - 1]
        places = torch.tensor([*range(before, before + shared), *range(start, start + length)])
        query, key, value = (tensor.index_select(2, places) for tensor in theirs)
        bounds = torch.tensor([0, shared + length], dtype=torch.int32)
        alone: dict[str, Any] = {
            "cu_seq_lens_q": bounds,
            "cu_seq_lens_k": bounds,
            "max_length_q": 12,
            "max_length_k": 12,
        }
        parts.append(varlen(query, key, value, scaling=0.3, sliding_window=window, **alone)[:, shared:])
    other = torch.cat(parts, dim=1)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    weight = torch.randn(1, T, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (one * weight).sum().backward()
    (other * weight).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "what"), [("softcap", "softens attention scores"), ("s_aux", "has attention sinks")])
def test_what_it_cannot_do_is_refused_and_not_left_out(name: str, what: str):
    with pytest.raises(ValueError, match=f"Identity {what}; set model.attention: eager"):
        varlen(*inputs(4, 2), **cast(Any, {name: 50.0}))
    varlen(*inputs(4, 2), **cast(Any, {name: None}))


def test_a_call_without_lengths_is_refused_and_not_taken_for_one_sequence():
    with pytest.raises(ValueError, match="needs the sequences' lengths"):
        varlen_attention(nn.Identity(), *inputs(4, 2), None)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_fused_kernel_equals_the_masked_one(kv_heads: int, window: int | None):
    query, key, value = (
        tensor.detach().repeat(1, 1, 1, 8).to("cuda", torch.bfloat16) for tensor in inputs(4, kv_heads)
    )
    made = (query.requires_grad_(), key.requires_grad_(), value.requires_grad_())
    same = (made[0].detach().requires_grad_(), made[1].detach().requires_grad_(), made[2].detach().requires_grad_())
    bounds = BOUNDS.cuda()
    one, _ = varlen_attention(
        nn.Identity(), *made, None, scaling=0.1, sliding_window=window,
        cu_seq_lens_q=bounds, cu_seq_lens_k=bounds, max_length_q=9, max_length_k=9,
    )  # fmt: skip
    with torch.device("cuda"):
        other = masked(*same, scale=0.1, window=window)
    torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2)
    one.float().square().sum().backward()
    other.float().square().sum().backward()
    for mine, reference in zip(made, same, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad, rtol=5e-2, atol=5e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 4])
def test_the_fused_kernel_goes_on_from_another_sequences_beginning_as_the_processor_does(window: int | None):
    plain = tuple(tensor.detach().repeat(1, 1, 1, 8).bfloat16() for tensor in inputs(4, 2))
    keys: dict[str, Any] = {"cu_seq_lens_k": KEY_BOUNDS, "max_length_k": 12, "key_places_K": KEY_PLACES}
    expected = varlen(*plain, scaling=0.1, sliding_window=window, **keys)
    moved = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in keys.items()}
    there = tuple(tensor.cuda() for tensor in plain)
    found = varlen(*there, scaling=0.1, sliding_window=window, cu_seq_lens_q=BOUNDS.cuda(), **moved)
    torch.testing.assert_close(found.cpu(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(("kind", "changes"), [("llama", {}), ("mistral", {"sliding_window": 4}), ("qwen2", {})])
def test_a_packed_row_has_the_logits_that_transformers_gives_each_sequence(
    tmp_path: Path, kind: str, changes: dict[str, Any]
):
    from transformers import AutoConfig

    llama = tiny_config(50).to_dict()
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
            "num_key_value_heads", "initializer_range")  # fmt: skip
    config = AutoConfig.for_model(kind, **{key: llama[key] for key in keys}, **changes)
    attention.register()
    plain, ours = tiny_model(config), tiny_model(config)
    plain.set_attn_implementation("eager")
    ours.set_attn_implementation(attention.NAME)
    ids_1T = torch.randint(50, (1, T), generator=torch.Generator().manual_seed(0))
    positions_1T = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    bounds = {"cu_seq_lens_q": BOUNDS, "cu_seq_lens_k": BOUNDS, "max_length_q": 9, "max_length_k": 9}
    packed = ours(input_ids=ids_1T, position_ids=positions_1T, use_cache=False, **bounds).logits
    alone = torch.cat([plain(input_ids=part).logits for part in ids_1T.split(LENGTHS, dim=1)], dim=1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-5)


def test_dropout_is_applied_and_not_left_out():
    query, key, value = inputs(4, 2)
    whole = varlen(query, key, value, dropout=0.0)
    torch.manual_seed(0)
    dropped = varlen(query, key, value, dropout=0.5)
    assert not torch.equal(whole, dropped)
    # a dropped weight counts 0 and a kept one twice: over many draws the mean is the whole
    mean = torch.stack([varlen(query, key, value, dropout=0.5) for _ in range(400)]).mean(0)
    assert float((mean - whole).abs().mean()) < 0.1 * float((dropped - whole).abs().mean())
