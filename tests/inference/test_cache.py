"""Keys and values whose rows come and go: against the plain cache of transformers, and by hand where rows move.

Shape letters: B rows, H heads, K places, D head size, Q tokens of a row in this forward.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers.cache_utils import DynamicCache

from tests.generating import family
from velocity.inference.cache import ROOM, RollingCache, own_mask, plain_cache, rolls, select_rows

HEADS, SIZE, LAYERS = 2, 3, 2


def states(rows: int, places: int, start: float = 1.0) -> Tensor:
    """Values that are all different, and none of them 0."""
    count = rows * HEADS * places * SIZE
    return torch.arange(start, start + count).view(rows, HEADS, places, SIZE)


def filled(rows: int, places: int, start: float = 1.0) -> RollingCache:
    """A cache of two layers; a layer's values are its keys turned negative, another layer's are larger by 10,000."""
    cache = RollingCache()
    for layer in range(LAYERS):
        keys = states(rows, places, start + 10_000 * layer)
        cache.update(keys, -keys, layer)
    return cache


def keys_of(cache: Any) -> list[Tensor]:
    return [layer.keys for layer in cache.layers]


def check_values(cache: RollingCache) -> None:
    for layer in cache.layers:
        assert torch.equal(layer.values, -layer.keys)


def test_tokens_are_added_as_in_the_plain_cache_across_many_reservations():
    ours, plain = RollingCache(), DynamicCache()
    for places in (5, 1, ROOM, 1, 3 * ROOM, 1, 1):
        keys = states(3, places, start=float(places))
        for layer in range(LAYERS):
            ours_keys, ours_values = ours.update(keys + layer, -keys - layer, layer)
            plain_keys, plain_values = plain.update(keys + layer, -keys - layer, layer)
            assert torch.equal(ours_keys, plain_keys) and torch.equal(ours_values, plain_values)
    assert ours.get_seq_length() == plain.get_seq_length() == 5 + 4 + 4 * ROOM
    check_values(ours)


def test_a_token_is_written_into_room_that_is_there_already():
    cache = filled(2, 5)
    places = {keys.data_ptr() for keys in keys_of(cache)}
    for _ in range(ROOM):
        for layer in range(LAYERS):
            cache.update(states(2, 1), -states(2, 1), layer)
    assert {keys.data_ptr() for keys in keys_of(cache)} == places
    assert cache.get_seq_length() == 5 + ROOM


def test_selected_rows_keep_their_head_and_their_tail_and_lose_the_gap_between():
    cache = filled(4, 10)
    before = [keys.clone() for keys in keys_of(cache)]
    cache.select(torch.tensor([3, 1]), head=2, gap=3)
    for keys, old in zip(keys_of(cache), before, strict=True):
        assert torch.equal(keys, torch.cat([old[[3, 1], :, :2], old[[3, 1], :, 5:]], dim=2))
    assert cache.get_seq_length() == 7
    check_values(cache)


@pytest.mark.parametrize(("ours", "theirs"), [(9, 5), (5, 9), (6, 6)])
def test_joined_rows_are_aligned_at_their_heads_and_at_their_ends_with_zeros_between(ours: int, theirs: int):
    one, other, head = filled(2, ours), filled(3, theirs, start=5000.0), 2
    olds = [(a.clone(), b.clone()) for a, b in zip(keys_of(one), keys_of(other), strict=True)]
    one.join(other, head)
    length = max(ours, theirs)
    for keys, parts in zip(keys_of(one), olds, strict=True):
        assert keys.shape == (5, HEADS, length, SIZE)
        for rows, old in ((slice(0, 2), parts[0]), (slice(2, 5), parts[1])):
            tail = old.shape[2] - head
            assert torch.equal(keys[rows, :, :head], old[:, :, :head])
            assert torch.equal(keys[rows, :, length - tail :], old[:, :, head:])
            assert not keys[rows, :, head : length - tail].any(), "padding is 0: the mask hides it, but not a NaN"
    check_values(one)


def test_a_joined_cache_takes_further_tokens_behind_all_rows():
    cache = filled(1, 4)
    cache.join(filled(1, 6, start=500.0), 0)
    new = states(2, 1, start=9000.0)
    for layer in range(LAYERS):
        cache.update(new, -new, layer)
    for keys in keys_of(cache):
        assert torch.equal(keys[:, :, -1:], new)
    assert cache.get_seq_length() == 7


def test_copies_of_a_row_are_its_values_and_do_not_share_its_memory():
    cache = filled(1, 4)
    before = [keys.clone() for keys in keys_of(cache)]
    many = cache.copies(3)
    for layer in range(LAYERS):
        many.update(states(3, 2), -states(3, 2), layer)
    for keys, old, copied in zip(keys_of(cache), before, keys_of(many), strict=True):
        assert torch.equal(keys, old), "the one that was copied is as it was"
        assert torch.equal(copied[:, :, :4], old.expand(3, -1, -1, -1))
    assert many.get_seq_length() == 6


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 1, 0], [2]])
def test_rows_are_reordered_and_repeated_as_in_the_plain_cache(rows: list[int]):
    ours, plain = filled(3, 5), DynamicCache()
    for layer in range(LAYERS):
        plain.update(keys_of(ours)[layer].clone(), -keys_of(ours)[layer], layer)
    for cache in (ours, plain):
        select_rows(cache, torch.tensor(rows))
        for layer in range(LAYERS):
            cache.update(states(len(rows), 1), -states(len(rows), 1), layer)
    for one, other in zip(keys_of(ours), keys_of(plain), strict=True):
        assert torch.equal(one, other)
    check_values(ours)


def test_a_query_sees_what_is_real_before_it_and_itself():
    real_BK = torch.tensor([[True, True, False, False, True, True], [True, True, True, True, True, True]])
    seen = own_mask(real_BK, 3, torch.float32, "sdpa")
    assert seen.shape == (2, 1, 3, 6)
    assert seen[0, 0].int().tolist() == [
        [1, 1, 0, 1, 0, 0],  # padding, which sees itself so that no softmax is empty
        [1, 1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1, 1],
    ]
    assert seen[1, 0].int().tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_attention_adds_what_the_other_mask_says(dtype: torch.dtype):
    real_BK = torch.tensor([[False, True, True]])
    seen, added = (own_mask(real_BK, 2, dtype, name) for name in ("sdpa", "eager"))
    assert added.dtype == dtype and added.shape == seen.shape
    assert torch.equal(added == 0, seen)
    assert bool((added[~seen] == torch.finfo(dtype).min).all())


WINDOWS: list[tuple[str, dict[str, Any], int, bool]] = [
    ("Llama", {}, 500, True),
    ("Qwen2", {}, 500, True),
    ("GPT2", {}, 500, True),
    ("Mistral", {"sliding_window": 32}, 33, False),
    ("Mistral", {"sliding_window": 32}, 32, True),
    ("Mistral", {"sliding_window": None}, 500, True),
    ("Gemma2", {"sliding_window": 32}, 33, False),
    ("Gemma2", {"sliding_window": 32}, 32, True),
    ("Qwen3", {"sliding_window": 8, "use_sliding_window": False}, 500, True),  # named, and used by no layer
    ("Qwen3", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, 500, False),
]


@pytest.mark.parametrize(("name", "changes", "longest", "expected"), WINDOWS)
def test_rows_come_and_go_where_each_layer_sees_all_that_is_before(
    name: str, changes: dict[str, Any], longest: int, expected: bool
):
    assert rolls(family(name, **changes).config, longest) is expected


def test_rows_stay_together_where_attention_takes_no_mask_of_ours_or_a_layer_has_a_state():
    config = family("Llama").config
    config._attn_implementation = "flash_attention_2"
    assert not rolls(config, 10)
    config._attn_implementation = "eager"
    assert rolls(config, 10)
    config.layer_types = ["full_attention", "linear_attention"]
    assert not rolls(config, 10)
    config.layer_types = None
    config.num_kv_shared_layers = 1
    assert not rolls(config, 10)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("Bloom", {}, False),  # a bias by distance, which counts padding
        ("Mpt", {}, False),
        ("Falcon", {"alibi": True}, False),
        ("Falcon", {"alibi": False}, True),
        ("GPTNeo", {"window_size": 256}, False),  # its local layers have a window of another name
        ("GPTNeo", {"window_size": 512}, True),
        ("GPTNeo", {"window_size": 4, "attention_types": [[["global"], 24]]}, True),
    ],
)
def test_rows_stay_together_where_a_layer_counts_the_places_between(name: str, changes: dict[str, Any], expected: bool):
    config = getattr(transformers, f"{name}Config")(**changes)
    config._attn_implementation = "eager"
    assert rolls(config, 500) is expected


def test_the_plain_cache_knows_the_models_windows():
    cache = plain_cache(family("Mistral", sliding_window=4).config)
    for places in (3, 1, 1, 1):
        cache.update(states(1, places), states(1, places), 0)
    assert cache.layers[0].keys.shape[2] == 3, "a window of 4 needs the last 3 places and the next token"
