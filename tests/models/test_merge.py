"""A merged model gives the logits of model and adapter together, in plain transformers, in the precision it had."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.making import tiny_model_folder, tiny_tokenizer
from tests.models.test_adapters import adapted, disturb, logits, trained_weights
from velocity.errors import UserError
from velocity.models.adapters import save_adapter
from velocity.models.locate import ADAPTER_CONFIG, base_of, is_adapter
from velocity.models.merge import merge


def made(tmp_path: Path, kind: str, **model: Any) -> tuple[Path, Any]:
    """An adapter's folder, and the logits that it gives with its model."""
    folder = tiny_model_folder(tmp_path / "model", **model)
    tuned, adapter = adapted(folder, kind=kind)
    disturb(tuned)
    save_adapter(adapter, trained_weights(tuned), tiny_tokenizer(), tmp_path / "adapter", "a card")
    return tmp_path / "adapter", logits(tuned)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_logits_are_those_of_model_and_adapter(tmp_path: Path, kind: str, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    adapter, expected = made(tmp_path, kind, tied=tied)
    merge(adapter, tmp_path / "merged", tiny_tokenizer(), turn_ends=[1])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(plain), expected, rtol=1e-5, atol=1e-5)
    assert not is_adapter(tmp_path / "merged")
    assert "merged" in (tmp_path / "merged" / "README.md").read_text()


def test_a_model_in_16_bit_stays_in_16_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    adapter, expected = made(tmp_path, "lora", dtype="bfloat16")
    merge(adapter, tmp_path / "merged", tiny_tokenizer(), turn_ends=[])
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert plain.dtype == torch.bfloat16
    # the update is added before it is rounded: off by no more than 16 bit are
    assert float((logits(plain.float()) - expected).abs().mean()) < 0.02 * float(expected.abs().mean())


def test_an_adapter_whose_model_has_moved_is_refused_with_where_it_was(tmp_path: Path) -> None:
    adapter, _ = made(tmp_path, "lora")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"no such model folder: {tmp_path}/model"):
        merge(adapter, tmp_path / "merged", tiny_tokenizer(), turn_ends=[])
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_names_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / ADAPTER_CONFIG).write_text("{}")
    with pytest.raises(UserError, match="does not name its model"):
        base_of(tmp_path)


def pickled(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    torch.save({}, adapter / "adapter_model.bin")


def cut(adapter: Path) -> None:
    with (adapter / "adapter_model.safetensors").open("r+b") as stream:
        stream.truncate(100)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (pickled, "the adapter has no weights; pickled weights are not read, convert them to safetensors"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "the adapter has no weights$"),
        (cut, "the weights are truncated"),
    ],
)
def test_an_adapter_whose_weights_are_a_pickle_or_not_whole_is_not_loaded(tmp_path: Path, damage: Any, says: str):
    adapter, _ = made(tmp_path, "lora")
    damage(adapter)
    with pytest.raises(UserError) as caught:
        merge(adapter, tmp_path / "merged", tiny_tokenizer(), turn_ends=())
    assert re.search(says, str(caught.value).splitlines()[0])
    assert not (tmp_path / "merged").exists()
