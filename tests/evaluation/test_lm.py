"""An engine as lm-eval's model: the same token ids as its own Hugging Face model, cut and windowed alike."""

from __future__ import annotations

from typing import Any

import pytest
from lm_eval.api.instance import Instance

from tests.evaluation.benchmarking import Plain
from tests.making import tiny_config, tiny_model, tiny_tokenizer
from velocity.errors import UserError
from velocity.evaluation.lm import VelocityLM

LENGTH = 32


class Recorder:
    """Keeps what it is asked; a continuation's log-probability is minus its number of tokens."""

    def __init__(self) -> None:
        self.scored: list[tuple[list[int], list[int]]] = []
        self.completed: list[tuple[list[int], Any]] = []

    def score(self, rows):
        self.scored += rows
        return [(-float(len(continuation)), False) for _, continuation in rows]

    def complete(self, requests):
        self.completed += requests
        return ["said. And more? No" for _ in requests]


def made(tokenizer: Any = None) -> tuple[VelocityLM, Recorder, Any]:
    recorder, tokenizer = Recorder(), tokenizer or tiny_tokenizer()
    return VelocityLM(recorder.score, recorder.complete, tokenizer, LENGTH), recorder, tokenizer


def asked(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=("task", 0, 1))]


def test_a_continuation_is_what_the_whole_has_beyond_its_context():
    lm, recorder, tokenizer = made()
    lm.loglikelihood(asked("loglikelihood", "Which colour?", " red"))
    whole = tokenizer.encode("Which colour? red")
    assert recorder.scored == [
        (whole[: len(tokenizer.encode("Which colour?"))], whole[len(tokenizer.encode("Which colour?")) :])
    ]


def test_a_space_that_ends_the_context_goes_to_the_continuation():
    lm, recorder, tokenizer = made()
    lm.loglikelihood(asked("loglikelihood", "Colour: ", "red"))
    assert recorder.scored[0][0] == tokenizer.encode("Colour:")


def test_without_a_context_the_first_token_of_all_stands_before():
    lm, recorder, tokenizer = made()
    lm.loglikelihood(asked("loglikelihood", "", "red"))
    assert recorder.scored == [([tokenizer.bos_token_id], tokenizer.encode("red"))]


def test_a_context_that_is_too_long_loses_its_beginning():
    """The model sees 32 tokens; the last of the continuation is none of them."""
    lm, recorder, tokenizer = made()
    lm.loglikelihood(asked("loglikelihood", "abc " * 40, "red"))
    context, continuation = recorder.scored[0]
    assert len(context) + len(continuation) == LENGTH + 1
    assert context == tokenizer.encode("abc " * 40 + "red")[: -len(continuation)][-len(context) :]


def test_a_continuation_that_is_longer_than_the_model_sees_is_refused():
    lm, _, _ = made()
    with pytest.raises(UserError, match="cannot be scored; the model sees 32"):
        lm.loglikelihood(asked("loglikelihood", "a", "xyz " * 60))


def test_each_token_of_a_text_is_scored_once_in_windows_of_what_the_model_sees():
    lm, recorder, tokenizer = made()
    text = "the rain says nothing " * 20
    ids = tokenizer.encode(text)
    assert lm.loglikelihood_rolling(asked("loglikelihood_rolling", text)) == [-float(len(ids))]
    assert [token for _, continuation in recorder.scored for token in continuation] == ids
    assert recorder.scored[0][0] == [tokenizer.bos_token_id]
    assert all(len(context) + len(continuation) <= LENGTH + 1 for context, continuation in recorder.scored)


def test_a_prompt_leaves_room_for_its_completion_which_ends_at_the_first_stop():
    lm, recorder, tokenizer = made()
    said = lm.generate_until(asked("generate_until", "abc " * 40, {"until": ["?", "."], "max_gen_toks": 12}))
    assert said == ["said"]
    ids, settings = recorder.completed[0]
    assert ids == tokenizer.encode("abc " * 40)[-(LENGTH - 12) :]
    assert settings["max_gen_toks"] == 12 and settings["temperature"] == 0.0 and settings["do_sample"] is False
    assert settings["until"] == ["?", ".", tokenizer.eos_token]


def test_a_completion_that_leaves_no_room_for_a_prompt_is_refused():
    lm, _, _ = made()
    with pytest.raises(UserError, match="256 new tokens, the model sees 32"):
        lm.generate_until(asked("generate_until", "abc", {"until": ["?"]}))


@pytest.mark.parametrize("text", ["plain text", "<s>has it already"])
def test_a_beginning_token_is_never_put_there_twice(text: str):
    tokenizer = tiny_tokenizer(None, add_bos=True, family="mistral")
    lm, _, _ = made(tokenizer)
    assert lm.tok_encode(text).count(tokenizer.bos_token_id) == 1
    assert lm.tok_encode("plain", add_special_tokens=False).count(tokenizer.bos_token_id) == 0


def test_a_chat_is_rendered_by_the_models_own_template():
    lm, _, tokenizer = made()
    chat = [{"role": "user", "content": "Hello"}]
    assert lm.apply_chat_template(chat) == tokenizer.apply_chat_template(
        chat, tokenize=False, add_generation_prompt=True
    )


def test_ids_are_those_of_lm_evals_own_hugging_face_model():
    from lm_eval.models.huggingface import HFLM

    for tokenizer in (tiny_tokenizer(), tiny_tokenizer(None, add_bos=True, family="mistral")):
        lm, _, _ = made(tokenizer)
        own = HFLM(pretrained=tiny_model(tiny_config(len(tokenizer))), tokenizer=tokenizer, device="cpu")
        assert lm.prefix_token_id == own.prefix_token_id and lm.eot_token_id == own.eot_token_id
        for context, continuation in (("Which?", " red"), ("Colour: ", "red"), ("<s>Which", " one")):
            assert lm._encode_pair(context, continuation) == own._encode_pair(context, continuation)


def test_a_score_is_the_models_own():
    tokenizer = tiny_tokenizer()
    plain = Plain(tiny_model(tiny_config(len(tokenizer))), tokenizer)
    lm = VelocityLM(plain.score, plain.complete, tokenizer, LENGTH)
    ((logprob, likeliest),) = lm.loglikelihood(asked("loglikelihood", "Which colour?", " red"))
    assert logprob < 0 and likeliest is False
