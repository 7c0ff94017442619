"""A causal model cut into stages of consecutive layers. It knows no engine: one stage is what one rank keeps of it.

A stage runs the architecture's own forward, in which the layers of the other stages let everything pass. So masks,
windows and rotary embeddings are the model's own; an architecture that does more between its layers is found by the
probe (models/probe.py), whose scores are measured before the cut.

Shape letters: B rows, S tokens of a row, T tokens of all rows without padding, D hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from velocity.errors import UserError
from velocity.models.scorer import CausalScorer, Rows, bounds_of, in_places, real_tokens


class Passing(nn.Module):
    """A layer of another stage."""

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """Return what came in."""
        return hidden_states


class Stage(nn.Module):
    """Our part of a model: the first one embeds, the last one scores.

    `tied` is the embedding's weight where it is the head's, too, and this stage has one of the two. The other stages'
    weights are left in the scorer's model as shapes only.
    """

    def __init__(self, scorer: CausalScorer, stages: int, number: int) -> None:
        """UserError where the architecture is not known to be a row of layers."""
        super().__init__()
        model = scorer.model
        check_layers(model)
        base, head = model.base_model, model.get_output_embeddings()
        self.first, self.last = number == 0, number == stages - 1
        shared = head.weight is base.embed_tokens.weight
        ours = _ours(base, head, stages)[number]
        _drop(model, [layer for i, layer in enumerate(base.layers) if i not in ours], ends=(self.first, self.last))
        layers = [layer if i in ours else Passing() for i, layer in enumerate(base.layers)]
        self.base: Any = _with(base, layers=nn.ModuleList(layers), **self._ends_of(base))
        self.head: nn.Module | None = head if self.last else None
        self.tied: nn.Parameter | None = head.weight if shared and (self.first or self.last) else None
        self._whole: Callable[[], Any] = lambda: model  # not a part of us: it has the names, and the others' shapes
        self._score = scorer.score

    def _ends_of(self, base: Any) -> dict[str, nn.Module]:
        return {
            "embed_tokens": base.embed_tokens if self.first else nn.Identity(),
            "norm": base.norm if self.last else nn.Identity(),
        }

    def forward(
        self, received: Tensor, position_ids_BS: Tensor, labels_BS: Tensor, lengths_B: Rows, shared_B: Rows = ()
    ) -> Tensor:
        """hidden_1TD for the next stage, or the last one's logps_BS; `received` is input_ids_BS or hidden_1TD."""
        real_BS = real_tokens(labels_BS, lengths_B)
        inputs = {"input_ids": received[real_BS][None]} if self.first else {"inputs_embeds": received}
        bounds = bounds_of(lengths_B, shared_B, labels_BS.device)
        output = self.base(**inputs, position_ids=position_ids_BS[real_BS][None], use_cache=False, **bounds)
        hidden_1TD: Tensor = output.last_hidden_state
        if not self.last:
            return hidden_1TD
        return in_places(self._score(hidden_1TD[0], labels_BS[real_BS]), real_BS)

    def parameters_by_name(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Our parameters under the model's names for them; a tied one has its embedding's."""
        return ((name, weight) for name, weight in self._whole().named_parameters() if not weight.is_meta)

    def weights(self) -> Mapping[str, Tensor]:
        """Our weights under the model's names for them; a tied one is the first stage's."""
        model = self._whole()
        saved = model.state_dict().keys()  # some buffers are part of a model, most are not
        named = [*model.named_parameters(), *model.named_buffers()]
        kept = {name: tensor for name, tensor in named if name in saved and not tensor.is_meta}
        return {name: tensor for name, tensor in kept.items() if self.first or tensor is not self.tied}


def check_layers(model: Any) -> None:
    """Nothing, or UserError where the model is not an embedding, a row of layers, a norm and a head."""
    base, head = model.base_model, model.get_output_embeddings()
    parts: list[Any] = [getattr(base, name, None) for name in ("embed_tokens", "layers", "norm")]
    why = ""
    if not all(isinstance(part, nn.Module) for part in (*parts, head)):
        why = "it has no embed_tokens, layers, norm and head"
    elif not all(isinstance(layer, GradientCheckpointingLayer) for layer in parts[1]):
        why = "its layers are not transformers' own"
    else:
        known = {id(weight) for part in (*parts, head) for weight in part.parameters()}
        others = [name for name, weight in model.named_parameters() if id(weight) not in known]
        why = f"{others[0]} is of no layer" if others else ""
    if why:
        fix = "set strategy.pipeline: 1, with strategy.zero: 3"
        raise UserError(f"{type(model).__name__} cannot be cut into stages: {why}", "strategy.pipeline", fix)


def cut(layers: Sequence[int], ends: tuple[int, int], stages: int) -> list[range]:
    """Each stage's layers, so that the largest stage is as small as can be.

    `layers` are the layers' sizes, `ends` those of what the first and the last stage have beside them. Every stage
    has a layer: they all have the same kinds of weights, as DeepSpeed's sums over stages need.
    """
    sums = list(accumulate(layers, initial=0))
    count = len(layers)
    # largest[s][n], at[s][n]: of the first n layers on the first s stages, the largest stage, and where its last begins
    largest = [{n: ends[0] + sums[n] for n in range(1, count + 1)}]
    at: list[dict[int, int]] = []
    for stage in range(1, stages):
        extra = ends[1] if stage == stages - 1 else 0
        options = {
            n: min((max(largest[-1][m], sums[n] - sums[m] + extra), -m) for m in range(stage, n))
            for n in range(stage + 1, count + 1)
        }
        largest.append({n: size for n, (size, _) in options.items()})
        at.append({n: -place for n, (_, place) in options.items()})
    stops = [count]
    for places in reversed(at):
        stops.append(places[stops[-1]])
    bounds = [0, *reversed(stops)]
    return [range(start, stop) for start, stop in zip(bounds, bounds[1:], strict=False)]


def _ours(base: Any, head: nn.Module, stages: int) -> list[range]:
    def size(*modules: nn.Module) -> int:
        return sum(weight.numel() for module in modules for weight in module.parameters())

    return cut([size(layer) for layer in base.layers], (size(base.embed_tokens), size(base.norm, head)), stages)


def _drop(model: Any, layers: Sequence[nn.Module], *, ends: tuple[bool, bool]) -> None:
    """Of what is not ours only the shapes stay: these layers, and both ends where they are not `ends` of ours."""
    base, head = model.base_model, model.get_output_embeddings()
    tied = head.weight is base.embed_tokens.weight
    parts = [*layers, *([] if ends[1] else [base.norm])]
    if not tied:
        parts += [end for end, is_ours in zip((base.embed_tokens, head), ends, strict=True) if not is_ours]
    elif not any(ends):
        parts += [base.embed_tokens, head]
    for part in parts:
        part.to("meta")
    if tied:
        head.weight = base.embed_tokens.weight


def _with(module: nn.Module, **children: nn.Module) -> nn.Module:
    """The same module with other children; the module itself keeps its own."""
    other = copy.copy(module)
    other._modules = {**module._modules, **children}
    return other
