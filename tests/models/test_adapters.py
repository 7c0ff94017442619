"""An adapter changes nothing at first, can be switched off, and is saved as peft loads it. Shape letters: B, S, V."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.making import tiny_model_folder, tiny_tokenizer
from velocity.config.adapter import AdapterConfig
from velocity.config.sections import ModelConfig
from velocity.errors import JobError, UserError
from velocity.models.adapters import adapter_off, add_adapter, quantisation, save_adapter, weights_read
from velocity.models.load import load_model

IDS_1S = torch.arange(20)[None] * 7 % 300
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("adapters") / "model")


def loaded(folder: Path, bits: int | None = None) -> Any:
    return load_model(folder, ModelConfig(path=str(folder), attention="sdpa"), "fp32", bits=bits)


def adapted(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """A model, and peft's model around it."""
    model = loaded(folder)
    return model, add_adapter(model, AdapterConfig(**settings), (str(folder), None), seed=1)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS_1S).logits
    return found


def disturb(model: Any) -> None:
    """As training would: the second factor is no longer 0."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "lora_B" in name:
            parameter.data.normal_(generator=generator, std=0.05)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_a_new_adapter_leaves_the_scores_as_they_were(folder: Path, kind: str) -> None:
    plain = logits(loaded(folder))
    model, _ = adapted(folder, kind=kind)
    torch.testing.assert_close(logits(model), plain, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_switched_off_it_leaves_the_scores_as_they_were_and_switched_on_again_it_does_not(
    folder: Path, kind: str
) -> None:
    plain = logits(loaded(folder))
    model, _ = adapted(folder, kind=kind)
    disturb(model)
    tuned = logits(model)
    assert float((tuned - plain).abs().max()) > 0.1
    with adapter_off(model):
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model), tuned)


def test_it_is_switched_on_again_after_an_error(folder: Path) -> None:
    model, _ = adapted(folder)
    disturb(model)
    tuned = logits(model)
    with pytest.raises(RuntimeError), adapter_off(model):
        raise RuntimeError
    assert torch.equal(logits(model), tuned)


def test_all_linear_layers_but_the_head_are_found_and_only_their_adapters_are_trained(folder: Path) -> None:
    model, _ = adapted(folder, rank=4)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-4] for name in trained} == set(LINEAR)
    assert all("lora_" in name for name in trained)
    assert len(trained) == 2 * len(LINEAR) * 2  # layers, linear maps, factors


def test_targets_that_are_named_are_those_that_are_adapted(folder: Path) -> None:
    model, _ = adapted(folder, targets=["q_proj", "v_proj"])
    trained = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"q_proj", "v_proj"}


def test_a_target_that_no_layer_has_is_refused_with_the_names_that_there_are(folder: Path) -> None:
    with pytest.raises(UserError) as caught:
        adapted(folder, targets=["query"])
    problem = caught.value.problems[0]
    assert problem.where == "adapter.targets"
    assert "down_proj, gate_proj, k_proj" in problem.fix


def test_the_same_seed_gives_the_same_adapter_and_leaves_the_global_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (adapted(folder)[0] for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(("kind", "scale"), [("lora", 32 / 4), ("rslora", 32 / 4**0.5)])
def test_the_update_is_scaled_as_the_papers_say(folder: Path, kind: str, scale: float) -> None:
    model, _ = adapted(folder, kind=kind, rank=4, alpha=32, targets="q_proj")
    disturb(model)
    layer = model.model.layers[0].self_attn.q_proj
    x_1D = torch.randn(1, 64, generator=torch.Generator().manual_seed(3))
    a_RD, b_DR = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer(x_1D) + scale * x_1D @ a_RD.T @ b_DR.T
    torch.testing.assert_close(layer(x_1D), expected, rtol=1e-5, atol=1e-5)


def trained_weights(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
def test_what_is_saved_is_what_peft_reloads(folder: Path, tmp_path: Path, kind: str) -> None:
    from peft import AutoPeftModelForCausalLM

    model, adapter = adapted(folder, kind=kind)
    disturb(model)
    save_adapter(adapter, trained_weights(model), tiny_tokenizer(), tmp_path / "adapter", "a card")
    again: Any = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"), dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-6, atol=1e-5)
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "adapter").iterdir()
    }


def test_a_tensor_that_came_back_empty_is_refused_and_nothing_is_left(folder: Path, tmp_path: Path) -> None:
    model, adapter = adapted(folder)
    weights = trained_weights(model)
    weights[next(iter(weights))] = torch.zeros(0)
    with pytest.raises(JobError, match="came back empty"):
        save_adapter(adapter, weights, tiny_tokenizer(), tmp_path / "adapter", "")
    with pytest.raises(JobError, match="came back empty"):
        save_adapter(adapter, {}, tiny_tokenizer(), tmp_path / "adapter", "")
    assert not (tmp_path / "adapter").exists()


def test_doras_layers_name_the_weights_that_they_read(folder: Path) -> None:
    assert weights_read(adapted(folder, kind="lora")[0]) == []
    model, _ = adapted(folder, kind="dora", targets="q_proj")
    layer = model.model.layers[0].self_attn.q_proj
    expected = [layer.base_layer.weight, layer.lora_A["default"].weight]
    read = weights_read(model)
    assert len(read) == 2 * 2  # layers, weights
    assert all(found is wanted for (_, found), wanted in zip(read[:2], expected, strict=True))


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_are_small_and_only_the_adapter_learns(folder: Path, bits: int) -> None:
    model = loaded(folder, bits)
    plain = logits(loaded(folder))
    add_adapter(model, AdapterConfig(bits=bits), (str(folder), None), seed=1)
    weight = model.model.layers[0].self_attn.q_proj.base_layer.weight
    assert weight.dtype in (torch.uint8, torch.int8)
    assert weight.numel() * weight.element_size() == 64 * 64 * bits // 8
    error = (logits(model) - plain).abs().mean() / plain.abs().mean()
    assert 0 < float(error) < 0.5, "near the model that it was made from, and not equal to it"
    model(input_ids=IDS_1S).logits.sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())


def test_quantising_without_bitsandbytes_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="need bitsandbytes, which is not installed"):
        quantisation(4, torch.float32)
    assert quantisation(None, torch.float32) is None
