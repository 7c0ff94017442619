"""Stages one after the other give what the whole model gives, and each keeps only what is its own.

Shape letters: B rows, S tokens of a row.
"""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generating import family
from tests.models.test_scorer import PACKED
from velocity.batch import Batch
from velocity.data.collate import collate
from velocity.errors import UserError
from velocity.models import attention
from velocity.models.scorer import CausalScorer
from velocity.models.stages import Stage, check_layers, cut

CPU = torch.device("cpu")


def scorer_of(name: str, implementation: str = attention.NAME, **changes: Any) -> CausalScorer:
    attention.register()
    model = family(name, **{"num_hidden_layers": 4, **changes})
    model.set_attn_implementation(implementation)
    return CausalScorer(model, max_tokens=64)


def stages_of(count: int, name: str, *arguments: Any, **changes: Any) -> list[Stage]:
    """All stages of the same model, of which each process has one."""
    return [Stage(scorer_of(name, *arguments, **changes), count, number) for number in range(count)]


def run(stages: list[Stage], batch: Batch) -> Tensor:
    passed, *inputs = batch.inputs(CPU)
    for stage in stages:
        passed = stage(passed, *inputs)
    return passed


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama, tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2, two of its layers with a window": (
        "Qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral, with a window": ("Mistral", {"sliding_window": 4}),
    "phi3": ("Phi3", {}),
    "olmo2": ("Olmo2", {}),
    "gemma2, every other layer with a window": (
        "Gemma2", {"head_dim": 16, "sliding_window": 4, "attn_logit_softcapping": None, "final_logit_softcapping": 2.0},
    ),
    "cohere": ("Cohere", {"logit_scale": 0.25}),
    "qwen3, with experts": (
        "Qwen3Moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("model", MODELS)
def test_stages_give_the_scores_of_the_whole_model(model: str, count: int) -> None:
    name, changes = MODELS[model]
    expected_BS = scorer_of(name, **changes)(*PACKED.inputs(CPU))
    found_BS = run(stages_of(count, name, **changes), PACKED)
    torch.testing.assert_close(found_BS, expected_BS, rtol=1e-5, atol=1e-5)
    assert found_BS.abs().sum() > 10


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("model", ["llama", "qwen2, two of its layers with a window"])
def test_a_stage_makes_the_masks_of_its_own_layers(implementation: str, model: str) -> None:
    name, changes = MODELS[model]
    expected_BS = scorer_of(name, **changes)(*PACKED.inputs(CPU))
    found_BS = run(stages_of(3, name, implementation, **changes), PACKED)
    torch.testing.assert_close(found_BS, expected_BS, rtol=1e-5, atol=1e-5)


def test_an_architecture_that_does_more_between_its_layers_gives_other_scores() -> None:
    # why a pipeline's scores are compared with the whole model's before it trains
    whole = scorer_of("Granite", embedding_multiplier=2.0)  # multiplied in the forward that every stage runs
    found_BS = run(stages_of(2, "Granite", embedding_multiplier=2.0), PACKED)
    assert (found_BS - whole(*PACKED.inputs(CPU))).abs().max() > 0.05


def test_a_batch_without_tokens_to_train_on_goes_through_with_a_gradient_of_zeros() -> None:
    stages = stages_of(2, "Llama")
    run(stages, collate([])).sum().backward()
    for stage in stages:
        assert [name for name, weight in stage.named_parameters() if weight.grad is None or weight.grad.any()] == []


def names(stage: Stage) -> set[str]:
    return set(stage.weights())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("count", [2, 3])
def test_the_stages_weights_are_the_models_each_once(count: int, tied: bool) -> None:
    whole = scorer_of("Llama", tie_word_embeddings=tied).model
    stages = stages_of(count, "Llama", tie_word_embeddings=tied)
    assert sum(len(names(stage)) for stage in stages) == len(dict(whole.named_parameters()))
    for stage in stages:
        for name, weight in stage.weights().items():
            assert torch.equal(weight, whole.get_parameter(name)), name


def test_a_stage_has_its_own_parts_alone() -> None:
    first, middle, last = stages_of(3, "Llama", num_hidden_layers=3)
    layers = [{name for name in names(stage) if ".layers." in name} for stage in (first, middle, last)]
    assert [{name.split(".")[2] for name in found} for found in layers] == [{"0"}, {"1"}, {"2"}]
    assert names(first) - layers[0] == {"model.embed_tokens.weight"}
    assert names(middle) == layers[1]
    assert names(last) - layers[2] == {"model.norm.weight", "lm_head.weight"}
    for stage in (first, middle, last):
        assert {id(weight) for weight in stage.parameters()} == {id(weight) for weight in stage.weights().values()}


def test_what_is_not_ours_takes_no_memory_and_keeps_its_shape() -> None:
    scorer = scorer_of("Llama")
    shapes = {name: weight.shape for name, weight in scorer.named_parameters()}
    stage = Stage(scorer, 2, 1)
    assert {name: weight.shape for name, weight in scorer.named_parameters()} == shapes
    held = [weight for weight in scorer.parameters() if not weight.is_meta]
    assert {id(weight) for weight in held} == {id(weight) for weight in stage.parameters()}


def test_both_ends_have_a_tied_weight_and_a_stage_between_them_has_not() -> None:
    first, middle, last = stages_of(3, "Llama", tie_word_embeddings=True)
    assert first.tied is not None
    assert last.tied is not None
    assert torch.equal(first.tied, last.tied)
    assert middle.tied is None
    assert all(stage.tied is None for stage in stages_of(2, "Llama"))


def test_a_tied_model_still_counts_its_embedding_once() -> None:
    counts = [scorer_of("Llama", tie_word_embeddings=True) for _ in range(4)]
    whole = sum(weight.numel() for weight in counts[3].parameters())
    for number, scorer in enumerate(counts[:3]):
        Stage(scorer, 3, number)
        assert sum(weight.numel() for weight in scorer.parameters()) == whole


def test_a_tied_weight_has_a_part_of_its_gradient_on_each_end() -> None:
    whole = scorer_of("Llama", tie_word_embeddings=True)
    whole(*PACKED.inputs(CPU)).sum().backward()
    stages = stages_of(2, "Llama", tie_word_embeddings=True)
    run(stages, PACKED).sum().backward()
    expected = whole.model.get_input_embeddings().weight.grad
    found = [stage.tied.grad for stage in stages if stage.tied is not None and stage.tied.grad is not None]
    torch.testing.assert_close(found[0] + found[1], expected, rtol=1e-4, atol=1e-4)
    assert all(one.abs().max() > 1e-2 for one in found)


def test_recomputed_layers_give_the_same_gradient() -> None:
    scorers = [scorer_of("Llama") for _ in range(2)]
    for scorer in scorers:
        scorer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    again = [Stage(scorer.train(), 2, number) for number, scorer in enumerate(scorers)]
    once = stages_of(2, "Llama")
    for stages in (again, once):
        run(stages, PACKED).sum().backward()
    for one, other in zip(again, once, strict=True):
        assert one.train().base.layers[0 if one.first else -1].gradient_checkpointing
        for name, weight in one.weights().items():
            torch.testing.assert_close(weight.grad, other.weights()[name].grad, msg=name)


@pytest.mark.parametrize(
    ("layers", "ends", "stages", "expected"),
    [
        ([1] * 4, (0, 0), 2, [(0, 2), (2, 4)]),
        ([1] * 4, (0, 0), 4, [(0, 1), (1, 2), (2, 3), (3, 4)]),
        ([1] * 6, (3, 3), 3, [(0, 1), (1, 5), (5, 6)]),  # 4, 4, 4
        ([1] * 4, (100, 100), 3, [(0, 1), (1, 3), (3, 4)]),  # a stage of an embedding alone would be smaller
        ([5, 1, 1, 1], (0, 0), 2, [(0, 1), (1, 4)]),
        ([1, 1, 1, 5], (0, 0), 2, [(0, 3), (3, 4)]),
        ([1] * 5, (0, 1), 2, [(0, 3), (3, 5)]),  # 3 and 2 + 1
    ],
)
def test_the_largest_stage_is_as_small_as_can_be(
    layers: list[int], ends: tuple[int, int], stages: int, expected: list[tuple[int, int]]
) -> None:
    assert [(part.start, part.stop) for part in cut(layers, ends, stages)] == expected


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_has_a_smaller_largest_stage(seed: int) -> None:
    chance = random.Random(seed)
    layers, ends = [chance.randint(1, 9) for _ in range(7)], (chance.randint(0, 20), chance.randint(0, 20))

    def largest(bounds: tuple[int, ...]) -> int:
        sizes = [sum(layers[start:stop]) for start, stop in zip((0, *bounds), (*bounds, 7), strict=True)]
        return max(sizes[0] + ends[0], *sizes[1:-1], sizes[-1] + ends[1])

    for stages in (2, 3, 5):
        found = tuple(part.start for part in cut(layers, ends, stages)[1:])
        assert largest(found) == min(map(largest, itertools.combinations(range(1, 7), stages - 1)))


@pytest.mark.parametrize(
    ("name", "why"), [("GPT2", "no embed_tokens, layers, norm and head"), ("Phi", "no embed_tokens, layers, norm")]
)
def test_another_kind_of_model_is_refused_by_its_name(name: str, why: str) -> None:
    with pytest.raises(UserError, match=f"{name}.* cannot be cut into stages: it has {why}") as caught:
        check_layers(scorer_of(name).model)
    assert "strategy.pipeline" in str(caught.value)


def test_weights_beside_the_layers_are_refused() -> None:
    model = scorer_of("Llama").model
    model.model.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="extra.weight is of no layer"):
        check_layers(model)


def test_layers_that_may_return_something_else_are_refused() -> None:
    model = scorer_of("Llama").model
    model.model.layers[1] = torch.nn.Identity()
    with pytest.raises(UserError, match="not transformers' own"):
        check_layers(model)
