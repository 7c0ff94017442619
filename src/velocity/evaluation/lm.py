"""An engine as a model of lm-eval: texts become token ids as in lm-eval's own Hugging Face model. It knows no engine.

It stands apart from `harness`, which imports lm-eval only where a job has benchmarks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from velocity.errors import UserError

Pair: TypeAlias = tuple[list[int], list[int]]  # a context and what follows it, as token ids
Scored: TypeAlias = tuple[
    float, bool
]  # a continuation's log-probability, and whether each of its tokens is the likeliest
ScoreFunction: TypeAlias = Callable[[Sequence[Pair]], list[Scored]]
CompleteFunction: TypeAlias = Callable[[Sequence[tuple[list[int], Mapping[str, Any]]]], list[str]]

NEW_TOKENS = 256  # of a completion, where a task does not say; as lm-eval's own model


class VelocityLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """To lm-eval one process that holds a model; who computes what is the business of the functions it is given."""

    def __init__(self, score: ScoreFunction, complete: CompleteFunction, tokenizer: Any, max_length: int) -> None:
        """`max_length` counts the tokens that the model sees at once."""
        super().__init__()
        self.tokenizer = tokenizer
        self.max_length = max_length
        self._score, self._complete = score, complete

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows: the beginning of a sequence, where the model has such a token."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """By which lm-eval tells chat templates apart."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids, with the tokenizer's special ones unless told otherwise or the text begins with them."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        chosen = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **chosen))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Scored]:
        """Of each continuation of a context."""
        found: list[Scored] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Of each whole text, in windows of what the model sees at once; each token is scored once."""
        windows: list[Pair] = []
        counts = []
        for (text,) in (request.args for request in requests):
            found = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length,
                context_len=1,
            )  # fmt: skip
            mine = [make_disjoint_window(window) for window in found]
            windows += mine
            counts.append(len(mine))
        scored = iter(self._score(windows))
        return [sum(next(scored)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """What the model says behind each context, cut at the first text that ends it."""
        asked, stops = [], []
        for context, chosen in (request.args for request in requests):
            settings = {"temperature": 0.0, **normalize_gen_kwargs(chosen, NEW_TOKENS)}
            new_tokens = int(settings["max_gen_toks"])
            room = self.max_length - new_tokens
            if room < 1:
                what = f"a benchmark asks for {new_tokens} new tokens, the model sees {self.max_length} at once"
                raise UserError(
                    what, "benchmarks", "leave that task out, or set its max_gen_toks in a file of your own"
                )
            stops.append(handle_stop_sequences(settings["until"], eos=self.tokenizer.decode(self.eot_token_id)))
            plain = has_bos_prefix(context, self.tokenizer.bos_token)
            ids = self.tok_encode(context, add_special_tokens=False if plain else None)
            asked.append((ids[-room:], {**settings, "until": stops[-1]}))
        said = self._complete(asked)
        return [postprocess_generated_text(one, stop, None) for one, stop in zip(said, stops, strict=True)]

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as text; without its system turn where the template has none."""
        try:
            return self._rendered(chat_history, add_generation_prompt)
        except jinja2.TemplateError:
            others = [message for message in chat_history if message["role"] != "system"]
            return self._rendered(others, add_generation_prompt)

    def _rendered(self, chat: list[dict[str, str]], prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat, tokenize=False, add_generation_prompt=prompt, continue_final_message=not prompt
            )
        )

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[Scored]:
        return self._score([self._fitted(*request) for request in requests])

    def _fitted(self, texts: tuple[str, str], context: list[int], continuation: list[int]) -> Pair:
        """The pair with as much of its context as the model sees: what is cut is on the left."""
        if not continuation or len(continuation) > self.max_length:
            what = f"an answer of {len(continuation)} tokens cannot be scored; the model sees {self.max_length} at once"
            raise UserError(what, f"benchmarks, the answer {texts[1]!r:.60}", "leave that task out, or limit its rows")
        return context[-(self.max_length + 1 - len(continuation)) :], continuation
