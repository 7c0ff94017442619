"""The table of what goes with what: every clash and every limit is found, said whole, and mended by what it names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.making import job_data
from velocity.config.combinations import CLASHES, LIMITS, Clash, Facts, Limit, Setting, clashes, limits


def nested(values: dict[str, Any]) -> Any:
    """An object with these dotted keys."""
    root: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        inner = root
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[name] = value
    return _object(root)


def _object(value: Any) -> Any:
    return SimpleNamespace(**{k: _object(v) for k, v in value.items()}) if isinstance(value, dict) else value


def example(setting: Setting) -> Any:
    """A value for which it holds."""
    candidates = ["cpu", "nvme", "bf16", "fp16", "none", "layers", "deepcompile", "sdpa", "kto", "live", "superoffload",
                  "adafactor", "muon", "adamw_8bit", "fp32", 0, 0.5, 1, 2, 3, True]  # fmt: skip
    for value in candidates:
        try:
            if setting.holds(value):
                return value
        except TypeError:
            continue
    raise AssertionError(f"no example of {setting.key} {setting.words}")


@pytest.mark.parametrize("clash", CLASHES, ids=lambda clash: f"{clash.one.key}-{clash.other.key}-{clash.other.words}")
def test_a_clash_names_both_settings_the_reason_and_what_works(clash: Clash):
    job = nested({clash.one.key: example(clash.one), clash.other.key: example(clash.other)})
    said = clash.found(job)
    assert said is not None and said in list(clashes(job))
    assert clash.one.key in said and clash.other.key in said and clash.why in said and said.endswith(clash.use)
    assert clash.found(nested({clash.one.key: example(clash.one)})) is None
    assert clash.found(nested({clash.other.key: example(clash.other)})) is None


@pytest.mark.parametrize("limit", LIMITS, ids=lambda limit: f"{limit.setting.key}-{limit.asks[:20]}")
def test_a_limit_is_said_where_the_machine_or_the_model_does_not_meet_it(limit: Limit):
    value = example(limit.setting)
    job = nested({limit.setting.key: value})
    poor = Facts(gpus=False, processes=3, query_heads=9, key_heads=9, layers=1)
    found = dict(limits(job, poor))
    assert limit.setting.key in found and "asks for" in found[limit.setting.key]
    assert not list(limits(job, Facts(gpus=True, processes=12, query_heads=12, key_heads=12, layers=12)))


def test_a_model_with_nine_heads_is_not_split_over_two_sequence_ranks():
    found = dict(limits(nested({"strategy.sequence": 2}), Facts(processes=2, query_heads=9)))
    assert "has 9" in found["strategy.sequence"]


@pytest.mark.parametrize("clash", CLASHES, ids=lambda clash: f"{clash.one.key}-{clash.other.key}-{clash.other.words}")
def test_the_keys_of_the_table_are_keys_of_a_job(clash: Clash):
    from velocity.config.load import option_names

    names = set(option_names())
    for setting in (clash.one, clash.other):
        assert any(name == setting.key or name.startswith(f"{setting.key}.") for name in names), setting.key


def test_a_job_with_a_clash_is_refused_before_anything_starts(tmp_path: Any):
    from pydantic import ValidationError

    from velocity.config.training import TrainingJob

    data = {**job_data(tmp_path), "strategy": {"zero": 2, "pipeline": 2}}
    with pytest.raises(ValidationError, match="strategy.pipeline=2 does not go with strategy.zero=2: .*; use"):
        TrainingJob.model_validate(data)
