"""The tuned model as plain files: plain transformers loads it, with the same logits, template and stop tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.making import chat, read_template, tiny_config, tiny_model, tiny_tokenizer
from velocity.errors import JobError
from velocity.models import attention, export
from velocity.models.export import generation_config, model_card, save_model

IDS = torch.arange(40)[None]


def changed(model: nn.Module) -> dict[str, torch.Tensor]:
    """Weights that training has moved away from those in the model."""
    return {name: tensor + 0.01 for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_loads_in_plain_transformers_with_the_weights_it_was_given(tmp_path: Path, tied: bool):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = tiny_tokenizer("llama3", add_bos=True)
    model = tiny_model(tiny_config(len(tokenizer), tie_word_embeddings=tied))
    attention.register()
    model.set_attn_implementation(attention.NAME)
    weights = changed(model)
    save_model(model, weights, tokenizer, tmp_path / "model", "# card\n")
    model.load_state_dict(weights)
    model.set_attn_implementation("eager")
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "model"))
    assert again.config._attn_implementation != attention.NAME, "plain transformers does not know it"
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits, rtol=0, atol=1e-5)
    again_tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "model"))
    messages = chat("a", "b")["messages"]
    assert again_tokenizer.apply_chat_template(messages) == tokenizer.apply_chat_template(messages)
    assert again_tokenizer("text").input_ids == tokenizer("text").input_ids
    assert (tmp_path / "model" / "README.md").read_text() == "# card\n"
    assert list((tmp_path / "model").glob("*.safetensors")) and not list((tmp_path / "model").glob("*.bin"))


def test_an_empty_tensor_is_refused_by_name_and_nothing_is_written(tmp_path: Path):
    # what ZeRO 3 leaves of a weight that was not gathered
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(len(tokenizer)))
    weights = {**changed(model), "model.norm.weight": torch.empty(0)}
    with pytest.raises(JobError, match="model.norm.weight came back empty"):
        save_model(model, weights, tokenizer, tmp_path / "model", "")
    assert list(tmp_path.iterdir()) == []


class Dies(Exception):
    """Stands for a kill: nothing that is written behind it is."""


@pytest.mark.parametrize("there_before", [False, True])
def test_a_folder_that_was_not_written_to_its_end_never_has_the_models_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(len(tokenizer)))
    if there_before:
        save_model(model, model.state_dict(), tokenizer, tmp_path / "model", "the first")

    def die(_: Any) -> None:
        raise Dies

    monkeypatch.setattr(tokenizer, "save_pretrained", die)
    with pytest.raises(Dies):
        save_model(model, changed(model), tokenizer, tmp_path / "model", "the second")
    if there_before:
        assert (tmp_path / "model" / "README.md").read_text() == "the first"
    else:
        assert not (tmp_path / "model").exists()
    monkeypatch.undo()
    save_model(model, changed(model), tokenizer, tmp_path / "model", "the second")
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "what was torn is cleaned up"
    assert (tmp_path / "model" / "README.md").read_text() == "the second"


def test_a_tokenizer_with_several_templates_is_saved_with_all_of_them(tmp_path: Path):
    from transformers import AutoTokenizer

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = {"default": read_template("smollm2"), "tool_use": read_template("qwen2_5")}
    model = tiny_model(tiny_config(len(tokenizer)))
    save_model(model, model.state_dict(), tokenizer, tmp_path / "model", "")
    assert AutoTokenizer.from_pretrained(str(tmp_path / "model")).chat_template == tokenizer.chat_template


def test_generation_settings_that_contradict_each_other_do_not_lose_the_model(tmp_path: Path):
    # as some models on the hub come: a temperature without sampling, which transformers refuses to save
    tokenizer = tiny_tokenizer()
    model = tiny_model(tiny_config(len(tokenizer)))
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = False
    save_model(model, model.state_dict(), tokenizer, tmp_path / "model", "")
    assert (tmp_path / "model" / "generation_config.json").is_file()


def test_the_end_of_a_turn_is_among_the_stop_tokens_beside_those_there_were():
    # as Llama 3 Base: the tokenizer's EOS is the end of a text, and the turn's end another token
    tokenizer = tiny_tokenizer("llama3")
    tokenizer.eos_token = "<|end_of_text|>"
    ids = dict(zip(("text", "turn"), tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"]), strict=True))
    model = tiny_model(tiny_config(len(tokenizer), eos_token_id=7))
    made = generation_config(model, tokenizer, [ids["turn"]])
    assert made.eos_token_id == sorted([7, ids["text"], ids["turn"]])
    assert made.pad_token_id == tokenizer.pad_token_id


def test_one_stop_token_stays_one_number():
    tokenizer = tiny_tokenizer("qwen2_5")
    model = tiny_model(tiny_config(len(tokenizer), eos_token_id=tokenizer.eos_token_id))
    assert generation_config(model, tokenizer).eos_token_id == tokenizer.eos_token_id


def test_a_card_says_what_the_model_was_trained_from_and_on_and_what_was_measured():
    card = model_card({
        "base": "some/base", "name": "run", "version": "0.1", "task": "sft", "steps": 12, "tokens": 34567,
        "trained": "an adapter (dora)", "library": "peft",
        "sources": [{"path": "chats.jsonl", "records": 1000, "tokens": 20000, "trained": 5000}],
        "results": [
            ("unseen", "perplexity", "12.35 (11.90–12.80)", "9.88"),
            ("pairs", "reward margin", "0.00", "not finite"),
        ],
        "settings": {"seed": 3},
    })  # fmt: skip
    for part in (
        "base_model: some/base\nlibrary_name: peft\n",
        "task sft, an adapter (dora), 12 steps, 34,567 tokens",
        "- chats.jsonl: 1,000 records, 20,000 tokens, 5,000",
        "| unseen | perplexity | 12.35 (11.90–12.80) | 9.88 |\n| pairs | reward margin | 0.00 | not finite |\n",
        '"seed": 3',
    ):
        assert part in card, part


def test_a_card_without_evaluations_says_so():
    facts = {"base": "b", "name": "n", "version": "0", "task": "sft", "trained": "all parameters",
             "library": "transformers", "steps": 1, "tokens": 1, "sources": [], "results": [],
             "settings": {}}  # fmt: skip
    assert "None was asked for." in model_card(facts)


def test_export_knows_no_engine():
    assert not {"deepspeed", "velocity.distributed"} & {name.partition(" ")[0] for name in vars(export)}
