"""Which parameters an optimizer has, which of them decay, and with which settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from velocity.config.sections import AdafactorConfig, AdamW8bitConfig, AdamWConfig, LionConfig, MuonConfig, SGDConfig
from velocity.distributed.engine import set_rate
from velocity.training.optimizer import build_optimizer


class Model(nn.Module):
    """An embedding, a layer with a bias, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layer = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)


def groups(model: nn.Module, config: Any) -> list[tuple[float, set[str]]]:
    """(weight decay, names of its parameters) of each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made = build_optimizer(model, config)
    return [(group["weight_decay"], {names[id(p)] for p in group["params"]}) for group in made.param_groups]


@pytest.mark.parametrize("kind", [AdamWConfig, SGDConfig])
def test_matrices_decay_and_norms_and_biases_do_not(kind: Any):
    assert groups(Model(), kind(learning_rate=1.0, weight_decay=0.3)) == [
        (0.3, {"embedding.weight", "layer.weight"}),
        (0.0, {"layer.bias", "norm.weight", "norm.bias"}),
    ]


def test_a_parameter_that_is_frozen_is_not_trained():
    model = Model()
    model.embedding.requires_grad_(False)
    model.norm.requires_grad_(False)
    model.layer.bias.requires_grad_(False)
    assert groups(model, SGDConfig(learning_rate=1.0)) == [(0.1, {"layer.weight"})]


def test_a_tied_weight_is_trained_once():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    assert groups(model, SGDConfig(learning_rate=1.0)) == [(0.1, {"0.weight"})]


def test_a_stub_that_remembers_its_shape_decays_by_that_shape():
    # ZeRO 3 leaves an empty vector on this rank
    model = nn.Module()
    for name, shape in {"matrix": (5, 4), "norm": (4,)}.items():
        stub = nn.Parameter(torch.zeros(0))
        stub.ds_shape = torch.Size(shape)  # type: ignore[attr-defined]
        model.register_parameter(name, stub)
    assert groups(model, AdamWConfig(learning_rate=1.0)) == [(0.1, {"matrix"}), (0.0, {"norm"})]


def test_an_optimizer_is_of_the_kind_that_the_job_names_with_its_settings():
    adamw = build_optimizer(Model(), AdamWConfig(learning_rate=3e-4, betas=(0.8, 0.9), epsilon=1e-6))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["betas"], adamw.defaults["eps"]) == (3e-4, (0.8, 0.9), 1e-6)
    sgd = build_optimizer(Model(), SGDConfig(learning_rate=0.2, momentum=0.9))
    assert type(sgd) is torch.optim.SGD
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.2, 0.9)


def test_weight_decay_pulls_a_matrix_towards_nothing_and_leaves_a_bias():
    model = nn.Linear(1, 1)
    optimizer = build_optimizer(model, SGDConfig(learning_rate=0.5, weight_decay=0.2))
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 2.0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert model.weight.item() == pytest.approx(2.0 - 0.5 * 0.2 * 2.0)
    assert model.bias.item() == 2.0


class Layers(nn.Module):
    """An embedding, two repeated layers with a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2))
        self.head = nn.Linear(4, 5, bias=False)


MUON = MuonConfig(kind="muon", learning_rate=0.02, rest_learning_rate=5e-4, weight_decay=0.3, momentum=0.9)


def test_muon_takes_the_layers_matrices_and_adamw_the_rest():
    model = Layers()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    made = build_optimizer(model, MUON)
    found = [(g["use_muon"], g["weight_decay"], {names[id(p)] for p in g["params"]}) for g in made.param_groups]
    assert found == [
        (True, 0.3, {"layers.0.0.weight", "layers.1.0.weight"}),
        (False, 0.3, {"embedding.weight", "head.weight"}),
        (
            False,
            0.0,
            {name for name in names.values() if "bias" in name or "layers.0.1" in name or "layers.1.1" in name},
        ),
    ]
    assert {name for name, p in model.named_parameters() if getattr(p, "use_muon", None)} == found[0][
        2
    ]  # where DeepSpeed looks
    assert made.param_groups[0]["momentum"] == 0.9


def test_the_rest_beside_muon_keeps_its_share_of_the_scheduled_rate():
    made = build_optimizer(Layers(), MUON)
    for rate in (0.02, 0.01):
        set_rate(made.param_groups, rate)
        assert [group["lr"] for group in made.param_groups] == pytest.approx(
            [rate, rate / 40, rate / 40]
        )  # 5e-4 / 0.02


@pytest.mark.parametrize(
    ("config", "name", "settings"),
    [
        (AdafactorConfig(kind="adafactor", learning_rate=0.1), "Adafactor", {"lr": 0.1}),
        (AdamW8bitConfig(kind="adamw_8bit", learning_rate=0.1, epsilon=1e-6), "AdamW8bit", {"lr": 0.1, "eps": 1e-6}),
        (LionConfig(kind="lion", learning_rate=0.1, betas=(0.8, 0.9)), "Lion", {"lr": 0.1, "betas": (0.8, 0.9)}),
    ],
)
def test_an_optimizer_of_another_library_has_the_jobs_settings(config: Any, name: str, settings: dict[str, Any]):
    made = build_optimizer(Model(), config)
    assert type(made).__name__ == name
    assert {key: made.defaults[key] for key in settings} == settings
    assert [group["weight_decay"] for group in made.param_groups] == [0.1, 0.0]
