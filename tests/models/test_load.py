"""A folder to a model: precision, attention; what cannot be loaded says why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.making import tiny_model_folder
from velocity.config.sections import ModelConfig
from velocity.errors import UserError
from velocity.models import attention
from velocity.models.load import load_model


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("load") / "model")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_model_is_loaded_in_the_precision_of_the_job(folder: Path, precision: str, dtype: torch.dtype):
    model = load_model(folder, ModelConfig(path=str(folder)), precision)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model.training


@pytest.mark.parametrize(
    ("asked", "used"),
    [("auto", attention.NAME), ("varlen", attention.NAME), ("sdpa", "sdpa"), ("eager", "eager")],
)
def test_the_attention_of_the_job_is_used(folder: Path, asked: str, used: str):
    model = load_model(folder, ModelConfig.model_validate({"path": str(folder), "attention": asked}), "fp32")
    assert model.config._attn_implementation == used  # type: ignore[union-attr]


def test_an_attention_that_is_not_installed_is_refused(folder: Path):
    model = ModelConfig(path=str(folder), attention="flash_attention_2")
    with pytest.raises(UserError, match="cannot load the model") as caught:
        load_model(folder, model, "bf16")
    assert "another model.attention?" in str(caught.value)


def change_config(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of the folder with other values in its config.json."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (target / "config.json").unlink()
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_an_architecture_that_transformers_does_not_know_is_refused(folder: Path, tmp_path: Path):
    other = change_config(folder, tmp_path / "other", model_type="unheard_of", architectures=["UnheardOf"])
    with pytest.raises(UserError, match="cannot load the model") as caught:
        load_model(other, ModelConfig(path=str(other)), "fp32")
    assert len(str(caught.value).splitlines()) == 3


def test_code_that_comes_with_a_model_runs_only_where_the_job_allows_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    other = change_config(
        folder,
        tmp_path / "other",
        model_type="own",
        auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.M"},
    )
    (other / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Own(LlamaConfig):\n    model_type = 'own'\nclass M(LlamaForCausalLM):\n    config_class = Own\n"
    )
    with pytest.raises(UserError, match="cannot load the model") as caught:
        load_model(other, ModelConfig(path=str(other)), "fp32")
    assert "model.trust_remote_code: true" in str(caught.value)
    assert not ran.exists()
    load_model(other, ModelConfig(path=str(other), trust_remote_code=True), "fp32")
    assert ran.exists()
