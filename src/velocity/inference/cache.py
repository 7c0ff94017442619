"""Keys and values of a batch whose rows come and go. It knows no engine and no request.

transformers' DynamicCache copies all of itself at each token; this one writes into room that it reserved. Rows are
aligned at their ends, so the places before a short row's first token are padding, which the mask hides.

Shape letters: B rows, H heads, K places, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

ROOM = 64  # places that are reserved ahead
ATTENTION = {"full_attention", "sliding_attention"}
TAKES_MASK = ("sdpa", "eager")
ALIBI = ("bloom", "mpt")  # measure distances in places of the cache, padding included


class GrowingLayer(DynamicLayer):  # type: ignore[misc] # transformers has no types
    """One layer's keys and values, as views of a longer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None
        self._length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """The keys and values with the new ones behind them."""
        if self._buffers is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self._reserve(key_states, value_states)
        end = self._length + key_states.shape[2]
        assert self._buffers is not None, "made above"
        if end > self._buffers[0].shape[2]:
            self._reserve(key_states, value_states)
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = states
        self._show(end)
        return self.keys, self.values

    def _reserve(self, *states: Tensor) -> None:
        """Longer buffers hold what the old ones did."""
        places = self._length + states[0].shape[2] + ROOM
        buffers = [new.new_empty((new.shape[0], new.shape[1], places, new.shape[3])) for new in states]
        if self._buffers is not None:
            for new, old in zip(buffers, self._buffers, strict=True):
                new[:, :, : self._length] = old[:, :, : self._length]
        self._buffers = (buffers[0], buffers[1])

    def _show(self, length: int) -> None:
        assert self._buffers is not None, "there is something to show"
        self._length = length
        self.keys, self.values = (buffer[:, :, :length] for buffer in self._buffers)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Only these rows are left, in this order; a row can stand more than once."""
        length = self.keys.shape[2]
        self.take([_placed([states[beam_idx]], length, length) for states in (self.keys, self.values)], length)

    def take(self, states: Sequence[Tensor], length: int) -> None:
        """These are the layer's keys and values from now on, the first `length` places of them."""
        self.dtype, self.device, self.is_initialized = states[0].dtype, states[0].device, True
        self._buffers = (states[0], states[1])
        self._show(length)


class RollingCache(Cache):  # type: ignore[misc] # transformers has no types
    """Keys and values of all layers; rows can leave and join."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=GrowingLayer)

    def select(self, rows_B: Tensor, head: int, gap: int) -> None:
        """Only these rows are left, in this order, without the `gap` places behind the first `head`."""
        for layer in self.layers:
            length = layer.keys.shape[2] - gap
            layer.take([_placed([states[rows_B]], head, length, gap) for states in (layer.keys, layer.values)], length)

    def join(self, other: RollingCache, head: int) -> None:
        """The other's rows stand behind ours; in the shorter ones padding follows the first `head` places."""
        length = max(self.get_seq_length(), other.get_seq_length())
        for ours, theirs in zip(self.layers, other.layers, strict=True):
            pairs = ((ours.keys, theirs.keys), (ours.values, theirs.values))
            ours.take([_placed(pair, head, length) for pair in pairs], length)

    def copies(self, rows: int) -> RollingCache:
        """A new cache that holds our one row so many times."""
        made = RollingCache()
        for layer in self.layers:
            length = layer.keys.shape[2]
            both = [one.expand(rows, -1, -1, -1) for one in (layer.keys, layer.values)]
            made.layers.append(GrowingLayer())
            made.layers[-1].take([_placed([one], length, length) for one in both], length)
        return made


def _placed(parts: Sequence[Tensor], head: int, length: int, gap: int = 0) -> Tensor:
    """The parts' rows below each other, aligned at their first `head` places and at their ends, in new buffers.

    `gap` places behind the head are left out. What a shorter part has no value for is 0: the mask hides it, but what
    is not finite would come through.
    """
    rows = sum(part.shape[0] for part in parts)
    made = parts[0].new_zeros((rows, parts[0].shape[1], length + ROOM, parts[0].shape[3]))
    first = 0
    for part in parts:
        last, tail = first + part.shape[0], part[:, :, head + gap :]
        made[first:last, :, :head] = part[:, :, :head]
        made[first:last, :, length - tail.shape[2] : length] = tail
        first = last
    return made


def rolls(config: Any, longest: int) -> bool:
    """True where rows of a batch can come and go: each layer attends to all that is before, within `longest` tokens.

    A window that is shorter, a recurrent state, or attention that takes no mask of ours needs transformers' own cache,
    whose rows stay together.
    """
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None)
    local = "local" in getattr(text, "attention_layers", ())  # GPT-Neo
    window = text.window_size if local else getattr(text, "sliding_window", None)
    windowed = window is not None and (kinds is None or "sliding_attention" in kinds) and window < longest
    return (
        config._attn_implementation in TAKES_MASK
        and text.model_type not in ALIBI
        and not getattr(text, "alibi", False)
        and (kinds is None or set(kinds) <= ATTENTION)
        and not getattr(text, "num_kv_shared_layers", None)
        and not windowed
    )


def select_rows(cache: Any, rows_B: Tensor) -> None:
    """Only these rows are left in a cache of either kind, in this order."""
    for layer in cache.layers:
        layer.reorder_cache(rows_B)


def plain_cache(config: Any) -> DynamicCache:
    """transformers' own cache, which knows the model's windows and states."""
    return DynamicCache(config=config)


def own_mask(real_BK: Tensor, queries: int, dtype: torch.dtype, attention: str) -> Tensor:
    """(B, 1, Q, K): each of the last `queries` places sees what is real before it, and itself.

    Padding sees itself, so that no row of the softmax is empty. `eager` adds its mask to the scores.
    """
    places = real_BK.shape[1]
    place = torch.arange(places, device=real_BK.device)
    query = place[places - queries :]
    seen = real_BK[:, None, :] & (place[None, None, :] <= query[None, :, None])
    seen = (seen | (place[None, None, :] == query[None, :, None]))[:, None]
    if attention == "sdpa":
        return seen
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)
