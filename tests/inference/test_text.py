"""Completions as text: what ends one, what is cut off, and characters that tokens share or drop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.making import tiny_tokenizer
from velocity.config.inference import GenerationConfig
from velocity.errors import UserError
from velocity.inference.text import Spoken

TOKENIZER = tiny_tokenizer()  # byte-level: a character of three bytes is three tokens


def spoken(folder: Path, tokenizer: Any = TOKENIZER, **generation: Any) -> Spoken:
    return Spoken(tokenizer, GenerationConfig(**generation), folder)


def ids_of(text: str, tokenizer: Any = TOKENIZER) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def with_spaces() -> Any:
    """A tokenizer as SentencePiece makes them: a space belongs to its word, and the first one is dropped."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "</s>", "▁yes", "▁no", "▁it", "▁is"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_a_completion_ends_with_the_tokens_of_model_tokenizer_and_template(tmp_path: Path):
    tokenizer = tiny_tokenizer("llama3")  # the template ends a turn with the tokenizer's own <|eot_id|>
    vocabulary = tokenizer.get_vocab()
    assert spoken(tmp_path, tokenizer).ends == {vocabulary["<|eot_id|>"]}
    tokenizer.eos_token = "<|end_of_text|>"
    assert spoken(tmp_path, tokenizer).ends == {vocabulary["<|eot_id|>"], vocabulary["<|end_of_text|>"]}
    for named, more in ((7, {7}), ([7, 9], {7, 9}), (None, set())):
        (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": named}))
        assert spoken(tmp_path, tokenizer).ends == {vocabulary["<|eot_id|>"], vocabulary["<|end_of_text|>"], *more}


def test_a_tokenizer_without_template_and_end_token_leaves_the_length(tmp_path: Path):
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    assert spoken(tmp_path, tokenizer).ends == frozenset()


def test_tokens_that_a_job_names_end_a_completion_too(tmp_path: Path):
    found = spoken(tmp_path, end_tokens=["<|endoftext|>"])
    assert found.ends == {TOKENIZER.eos_token_id, TOKENIZER.convert_tokens_to_ids("<|endoftext|>")}


@pytest.mark.parametrize("name", ["<|no such|>", "two words"])
def test_an_end_token_that_the_tokenizer_does_not_have_is_refused_by_name(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=f"'{name.replace('|', '.')}' is no single token") as caught:
        spoken(tmp_path, end_tokens=["<|im_end|>", name])
    assert caught.value.problems[0].where == "generation.end_tokens"
    assert "generation.stop" in caught.value.problems[0].fix


def test_the_token_that_ended_a_completion_is_no_part_of_its_text(tmp_path: Path):
    say = spoken(tmp_path)
    end = TOKENIZER.eos_token_id
    assert say.text(ids_of("Why?"), [*ids_of("So it is."), end]) == "So it is."
    assert say.text(ids_of("Why?"), ids_of("So it is.")) == "So it is."
    assert say.text(ids_of("Why?"), [end]) == ""
    assert say.text(ids_of("Why?"), []) == ""


def test_an_end_token_that_is_text_is_cut_off_once(tmp_path: Path):
    (end,) = ids_of("!")
    say = spoken(tmp_path, end_tokens=["!"])
    assert say.text([], [*ids_of("a"), end]) == "a"


@pytest.mark.parametrize("stop", [".", "it", "日", "🙂", "so\n\nit", "is. N"])
def test_a_completion_ends_where_a_text_appears_and_is_cut_before_it(tmp_path: Path, stop: str):
    say = spoken(tmp_path, stop=stop)
    ids = ids_of("Yes, so\n\nit is. No 日本 🙂 more")
    place = next(count for count in range(1, len(ids)) if stop in TOKENIZER.decode(ids[:count]))
    assert [say.stopped(ids[:count]) for count in range(1, place + 1)] == [False] * (place - 1) + [True]
    assert say.text(ids_of("Why?"), ids[:place]) == TOKENIZER.decode(ids).partition(stop)[0]


def test_of_several_stop_texts_the_first_to_appear_cuts(tmp_path: Path):
    say = spoken(tmp_path, stop=["No", "is", "it is"])
    ids = ids_of("Yes, it is. No")
    assert say.text([], ids) == "Yes, "
    assert not say.stopped(ids_of("Yes, "))


def test_a_stop_text_of_the_prompt_does_not_count(tmp_path: Path):
    say = spoken(tmp_path, stop="Why")
    assert not say.stopped(ids_of("So"))
    assert say.text(ids_of("Why?Why"), ids_of("So it is")) == "So it is"


def test_a_stop_text_is_found_wherever_it_is_though_only_the_end_is_looked_at(tmp_path: Path):
    text = "length of every input. "
    say, stop = spoken(tmp_path, stop="=====" * 4), ids_of("=====" * 4)
    assert say.stopped([*ids_of(text * 20), *stop])
    assert say.stopped([*ids_of(text * 20), *stop, *ids_of("!")])
    assert not say.stopped([*ids_of(text * 20), *stop[:-1]])


def test_without_stop_texts_nothing_is_decoded(tmp_path: Path):
    class Mute:
        eos_token_id = None
        chat_template = None

        def get_vocab(self) -> dict[str, int]:
            return {}

    assert not spoken(tmp_path, Mute()).stopped([1, 2, 3])


def test_a_first_space_is_kept_where_a_tokenizer_drops_it(tmp_path: Path):
    tokenizer = with_spaces()
    say = spoken(tmp_path, tokenizer)
    prompt, ids = ids_of("it is", tokenizer), ids_of("no it", tokenizer)
    assert tokenizer.decode(ids) == "no it", "by itself it is dropped"
    assert say.text(prompt, ids) == " no it"


def test_a_stop_text_that_begins_with_the_first_space_stops_too(tmp_path: Path):
    tokenizer = with_spaces()
    say = spoken(tmp_path, tokenizer, stop=" no")
    assert say.stopped(ids_of("yes no", tokenizer))
    assert say.text(ids_of("it is", tokenizer), ids_of("yes no", tokenizer)) == " yes"


@pytest.mark.parametrize("cut", [1, 2])
def test_a_character_that_is_not_whole_harms_no_other(tmp_path: Path, cut: int):
    say = spoken(tmp_path)
    sun = ids_of("日")
    assert len(sun) == 3
    # half of a character at the prompt's end, the rest at the completion's beginning
    assert say.text([*ids_of("a"), *sun[:cut]], [*sun[cut:], *ids_of("b")]).endswith("b")
    assert say.text(ids_of("a"), [*ids_of("b"), *sun[:cut]]).startswith("b")
    assert say.text(ids_of("a"), [*ids_of("b"), *sun]) == "b日"


def test_special_tokens_are_not_shown_and_do_not_hide_what_follows(tmp_path: Path):
    say = spoken(tmp_path, stop="No")
    other = TOKENIZER.convert_tokens_to_ids("<|im_start|>")
    assert say.text([other], [other, *ids_of("Yes"), other, *ids_of(" it")]) == "Yes it"
    assert say.stopped([*ids_of("N"), other, *ids_of("o")])
