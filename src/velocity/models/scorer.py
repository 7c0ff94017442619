"""A causal model that gives log-probabilities of labels, never logits. It knows no objective and no engine.

Shape letters: B rows, S tokens of a row, T tokens of all rows without padding, N labels, D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from velocity.batch import IGNORED
from velocity.models import attention

Rows: TypeAlias = tuple[tuple[int, ...], ...]  # a number for each sequence of each row

Tokens: TypeAlias = tuple[Tensor, Tensor, Tensor]  # ids, positions and labels

CHUNK_BYTES = 1 << 28  # of fp32 logits that exist at once


@dataclass(frozen=True)
class HeadRules:
    """What some architectures do to logits behind the head: scale (Granite, Cohere), then soften (Gemma 2)."""

    scale: float = 1.0
    softcap: float | None = None


def head_rules(config: Any) -> HeadRules:
    """Read from a model's configuration."""
    scale = getattr(config, "logit_scale", None) or 1.0
    if divisor := getattr(config, "logits_scaling", None):
        scale /= divisor
    return HeadRules(scale, getattr(config, "final_logit_softcapping", None))


class Spread(attention.Spread, Protocol):
    """Ranks that share each micro-batch's tokens."""

    def ours(self, values_T: Tensor) -> Tensor:
        """Our part of the tokens; their number is a multiple of the ranks."""

    def whole(self, values_T: Tensor) -> Tensor:
        """Of all tokens, from each rank's part. Its gradient is our part's alone: every rank takes the same loss."""


class CausalScorer(nn.Module):
    """Wraps a Hugging Face causal model: all rows are laid end to end, so padding is never computed."""

    def __init__(self, model: nn.Module, max_tokens: int, spread: Spread | None = None) -> None:
        """`max_tokens` bounds the tokens of a micro-batch; it fixes the number of chunks of the head.

        Under ZeRO 3 each chunk gathers the head, so the number must be the same on every rank whatever its tokens.
        With a `spread` we compute a part of the tokens, and return the log-probabilities of all.
        """
        super().__init__()
        self.spread = spread
        self.model: Any = model  # what a Hugging Face model has, no type says
        config: Any = model.config
        text_config = config.get_text_config()
        self.rules = head_rules(text_config)
        self.vocabulary: int = text_config.vocab_size
        chunk_tokens = max(128, CHUNK_BYTES // (4 * self.vocabulary))
        self.chunks = max(1, math.ceil(max_tokens / (chunk_tokens * (spread.size if spread else 1))))

    def forward(
        self, input_ids_BS: Tensor, position_ids_BS: Tensor, labels_BS: Tensor, lengths_B: Rows, shared_B: Rows = ()
    ) -> Tensor:
        """logps_BS in fp32: the log-probability of each label, 0 where there is none. Fields are those of a Batch."""
        real_BS = real_tokens(labels_BS, lengths_B)
        tokens = (input_ids_BS[real_BS], position_ids_BS[real_BS], labels_BS[real_BS])
        if self.spread is None:
            logps_T = self._logps_of(tokens, bounds_of(lengths_B, shared_B, labels_BS.device))
        else:
            logps_T = self._logps_of_parts(tokens, lengths_B, shared_B, self.spread)
        return in_places(logps_T, real_BS)

    def _logps_of(self, tokens: Tokens, bounds: dict[str, Any]) -> Tensor:
        """logps_T of ids, positions and labels that lie end to end."""
        ids_T, positions_T, labels_T = tokens
        return self.score(self.hidden(ids_T, positions_T, bounds), labels_T)

    def score(self, hidden_TD: Tensor, labels_T: Tensor) -> Tensor:
        """logps_T of labels, from what the last layer's norm gives."""
        trained_T = labels_T != IGNORED
        logps_N = self._score(hidden_TD[trained_T], labels_T[trained_T])
        return in_places(logps_N, trained_T)

    def _logps_of_parts(self, tokens: Tokens, lengths_B: Rows, shared_B: Rows, spread: Spread) -> Tensor:
        """The same, each rank computing its part; a last sequence of padding makes them even."""
        count = len(tokens[0])
        padding = -count % spread.size
        if padding:
            lengths_B, shared_B = (*lengths_B, (padding,)), (*shared_B, (0,)) if shared_B else ()
        fills = (0, 0, IGNORED)
        ids_T, positions_T, labels_T = (
            spread.ours(F.pad(values_T, (0, padding), value=fill)) for values_T, fill in zip(tokens, fills, strict=True)
        )
        bounds = {**bounds_of(lengths_B, shared_B, ids_T.device), "spread": spread}
        return spread.whole(self._logps_of((ids_T, positions_T, labels_T), bounds))[:count]

    def hidden(self, ids_T: Tensor, positions_T: Tensor, bounds: dict[str, Any]) -> Tensor:
        """hidden_TD, as the last layer's norm gives it, of tokens that lie end to end."""
        # without a cache: with one, transformers no longer isolates by position ids
        output = self.model.base_model(input_ids=ids_T[None], position_ids=positions_T[None], use_cache=False, **bounds)
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def whole_logits(self, ids_S: Tensor) -> Tensor:
        """logits_SV of one short sequence, by the model's own forward: what `forward` is checked against."""
        positions_S = torch.arange(len(ids_S), device=ids_S.device)
        bounds = bounds_of(((len(ids_S),),), (), ids_S.device)
        logits: Tensor = self.model(ids_S[None], position_ids=positions_S[None], use_cache=False, **bounds).logits[0]
        return logits

    def _score(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        """logps_N, a chunk of the head at a time; a chunk's logits are computed again in backward.

        Those of the last chunk are kept: backward begins with them, so they never live beside another chunk's.
        """
        parts = list(zip(hidden_ND.tensor_split(self.chunks), labels_N.tensor_split(self.chunks), strict=True))
        logps = [checkpoint(self._logps, hidden, labels, use_reentrant=False) for hidden, labels in parts[:-1]]
        return torch.cat([*logps, self._logps(*parts[-1])])

    def _logps(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        return -F.cross_entropy(self.logits(hidden_ND), labels_N, reduction="none")

    def head(self, hidden_ND: Tensor) -> Tensor:
        """What the model's head makes of it, before scale and softening."""
        raw_NV: Tensor = self.model.get_output_embeddings()(hidden_ND)
        return raw_NV

    def logits(self, hidden_ND: Tensor) -> Tensor:
        """logits_NV in fp32 of what the last layer's norm gives."""
        logits_NV: Tensor = self.head(hidden_ND).float()
        if self.rules.scale != 1.0:
            logits_NV = logits_NV * self.rules.scale
        if self.rules.softcap is not None:
            logits_NV = self.rules.softcap * torch.tanh(logits_NV / self.rules.softcap)
        return logits_NV


def bounds_of(lengths_B: Rows, shared_B: Rows, device: torch.device) -> dict[str, Any]:
    """Where sequences begin and end, as transformers' FlashAttentionKwargs name it, and which keys each one sees."""
    lengths = [length for row in lengths_B for length in row]
    starts = list(accumulate(lengths, initial=0))
    queries = torch.tensor(starts, dtype=torch.int32, device=device)
    bounds = {"cu_seq_lens_q": queries, "max_length_q": max(lengths)}
    if not shared_B:
        return {**bounds, "cu_seq_lens_k": queries, "max_length_k": max(lengths)}
    shared = [count for row in shared_B for count in row]
    places: list[int] = []
    first = 0
    for count, start, length in zip(shared, starts, lengths, strict=False):
        first = first if count else start
        places += [*range(first, first + count), *range(start, start + length)]
    seen = [count + length for count, length in zip(shared, lengths, strict=True)]
    keys = torch.tensor([0, *accumulate(seen)], dtype=torch.int32, device=device)
    key_places = torch.tensor(places, device=device)
    return {**bounds, "cu_seq_lens_k": keys, "max_length_k": max(seen), "key_places_K": key_places}


def in_places(values_N: Tensor, places: Tensor) -> Tensor:
    """The values in fp32, one where each place is True, and 0 elsewhere."""
    return torch.zeros(places.shape, dtype=torch.float32, device=places.device).masked_scatter(places, values_N)


def real_tokens(like_BS: Tensor, lengths_B: Rows) -> Tensor:
    """True where a row holds a token, False where it is padding."""
    sums_B = torch.tensor([sum(row) for row in lengths_B], device=like_BS.device)
    return torch.arange(like_BS.shape[1], device=like_BS.device)[None, :] < sums_B[:, None]
