"""Attention within each sequence of a packed row, without a mask.

Shape letters: H heads, T tokens, K keys, D head size. A sequence may also see the beginning of the one before it: two
answers share their prompt, which is computed once. On a GPU in 16 bit it is PyTorch's variable-length FlashAttention;
elsewhere each sequence is a call of its own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "velocity_varlen"
UNSUPPORTED = {"softcap": "softens attention scores", "s_aux": "has attention sinks"}


class Spread(Protocol):
    """Ranks that share a row: each has a part of its tokens, and while they attend a part of the heads."""

    @property
    def size(self) -> int:
        """How many ranks."""
        ...

    def to_heads(self, states_1HTD: Tensor) -> Tensor:
        """Of our tokens with all heads, all tokens with our heads."""

    def to_tokens(self, states_1THD: Tensor) -> Tensor:
        """The way back: of all tokens with our heads, our tokens with all heads."""


def varlen_attention(  # noqa: PLR0913 - transformers' signature
    module: nn.Module,
    query_1HTD: Tensor,
    key_1HTD: Tensor,
    value_1HTD: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int = 0,
    max_length_k: int = 0,
    key_places_K: Tensor | None = None,
    spread: Spread | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence; `cu_seq_lens_q` holds the cumulated lengths, as for FlashAttention.

    `key_places_K` says which tokens the keys of all sequences are, where that is not each one's own; then
    `cu_seq_lens_k` differs from `cu_seq_lens_q`, and a sequence's own tokens are the last ones of its keys. With a
    `spread` the states are those of our part of the tokens, and the lengths those of the whole (Ulysses: arXiv
    2309.14509): as each rank attends over whole sequences, packed ones stay apart.
    """
    if spread is not None:
        query, key, value = map(spread.to_heads, _even_heads(query_1HTD, key_1HTD, value_1HTD, spread.size))
        output_1THD, _ = varlen_attention(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, sliding_window=sliding_window,
            cu_seq_lens_q=cu_seq_lens_q, cu_seq_lens_k=cu_seq_lens_k, max_length_q=max_length_q,
            max_length_k=max_length_k, key_places_K=key_places_K, **others,
        )  # fmt: skip
        return spread.to_tokens(output_1THD), None
    for name, what in UNSUPPORTED.items():
        if others.get(name) is not None:
            raise ValueError(f"{type(module).__name__} {what}; set model.attention: eager")
    if cu_seq_lens_q is None or cu_seq_lens_k is None:
        raise ValueError("variable-length attention needs the sequences' lengths (cu_seq_lens_q, cu_seq_lens_k)")
    if key_places_K is not None:
        key_1HTD, value_1HTD = (tensor.index_select(2, key_places_K) for tensor in (key_1HTD, value_1HTD))
    if dropout == 0.0 and _has_kernel(query_1HTD):
        window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
        bounds, longest = (cu_seq_lens_q, cu_seq_lens_k), (max_length_q, max_length_k)
        return _fused((query_1HTD, key_1HTD, value_1HTD), bounds, longest, window, scaling), None
    lengths = (cu_seq_lens_q.diff().tolist(), *[cu_seq_lens_k.diff().tolist()] * 2)
    tensors = zip((query_1HTD, key_1HTD, value_1HTD), lengths, strict=True)
    parts = zip(*(torch.split(tensor, sizes, dim=2) for tensor, sizes in tensors), strict=True)
    outputs = [_one(query, key, value, scaling, sliding_window, dropout) for query, key, value in parts]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _even_heads(query: Tensor, key: Tensor, value: Tensor, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """The states with as many key heads as it takes to deal them out; fewer are repeated."""
    heads, key_heads = query.shape[1], key.shape[1]
    times = next(n for n in range(1, heads + 1) if key_heads * n % ranks == 0 and heads % (key_heads * n) == 0)
    return query, key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)


def _has_kernel(query: Tensor) -> bool:
    """True where FlashAttention runs: in 16 bit on a GPU of compute capability 8.0 and up."""
    if not query.is_cuda or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    return torch.cuda.get_device_capability(query.device)[0] >= 8


def _fused(
    states: tuple[Tensor, Tensor, Tensor],
    bounds: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    window: tuple[int, int],
    scale: float | None,
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    gqa = states[0].shape[1] != states[1].shape[1]
    query, key, value = (tensor[0].transpose(0, 1) for tensor in states)
    output_THD = varlen_attn(query, key, value, *bounds, *longest, scale=scale, window_size=window, enable_gqa=gqa)
    assert isinstance(output_THD, Tensor), "only with return_aux does it return more"
    return output_THD[None]


def _one(  # noqa: PLR0913 - what attention takes
    query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None, dropout: float
) -> Tensor:
    length, keys, gqa = query.shape[2], key.shape[2], query.shape[1] != key.shape[1]
    if length == keys and (window is None or length <= window):
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=gqa
        )
    place = torch.arange(keys, device=query.device)
    distance = place[keys - length :, None] - place[None, :]
    mask = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale, enable_gqa=gqa
    )


def register() -> None:
    """transformers knows `velocity_varlen` as an attention implementation that needs no mask."""
    AttentionInterface.register(NAME, varlen_attention)
    AttentionMaskInterface.register(NAME, lambda *arguments, **named: None)
