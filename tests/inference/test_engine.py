"""The contract of an engine: each one has all of it, with the same arguments by the same names."""

from __future__ import annotations

import inspect

import pytest

from velocity.inference.deepspeed_engine import DeepSpeedInferenceEngine
from velocity.inference.engine import Engine
from velocity.inference.hf_engine import TransformersEngine
from velocity.inference.zero_engine import ZeroEngine

ENGINES = (TransformersEngine, DeepSpeedInferenceEngine, ZeroEngine)
METHODS = [name for name, value in vars(Engine).items() if inspect.isfunction(value) and not name.startswith("_")]


def test_the_contract_is_as_small_as_it_is_said_to_be():
    assert sorted(METHODS) == ["agree", "any", "close", "forward", "idle", "run", "same"]
    assert sorted(Engine.__annotations__) == ["device", "leads", "lockstep", "model", "recovers"]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", METHODS)
def test_an_engine_has_each_method_with_the_contracts_arguments(engine: type, method: str):
    asked, there = (inspect.signature(getattr(kind, method)) for kind in (Engine, engine))
    assert list(there.parameters) == list(asked.parameters)
    assert there.return_annotation == asked.return_annotation


@pytest.mark.parametrize(
    ("engine", "lockstep", "recovers"),
    # Where ranks compute together, one that leaves a forward half-way would leave the others waiting.
    [(TransformersEngine, False, True), (DeepSpeedInferenceEngine, False, False), (ZeroEngine, True, False)],
)
def test_who_computes_together_decides_who_recovers(engine: type, lockstep: bool, recovers: bool):
    assert (vars(engine)["lockstep"], vars(engine)["recovers"]) == (lockstep, recovers)
