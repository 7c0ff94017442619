"""A pair whose prompt is computed once has the log-probabilities and gradients of two separate rows.

Shape letters: A answers (chosen ones first), N sequences of a corpus.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.making import tiny_config, tiny_model, tiny_model_folder, write_jsonl
from tests.running import WORDS, loader_of, make_job
from velocity.data.corpus import Corpus
from velocity.data.layout import Pairs
from velocity.data.pack import Indices
from velocity.distributed.comm import Ranks
from velocity.models import attention
from velocity.models.scorer import CausalScorer
from velocity.objectives.answers import answer_logps

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Eight pairs whose prompts have 30 to 120 tokens, whose answers 3 to 60."""
    folder = tmp_path_factory.mktemp("sharing")
    tiny_model_folder(folder / "model")
    rows = [
        {"prompt": " ".join(WORDS[: 1 + 2 * i]), "chosen": " ".join(WORDS[: 1 + i]), "rejected": " ".join(WORDS[i:])}
        for i in range(8)
    ]
    write_jsonl(folder / "train.jsonl", rows)
    return loader_of(make_job(folder, {"task": "preference"}), Ranks()).corpus


def cheap(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, vocab_size=400, **SIZES, **changes)


ARCHITECTURES = {
    "llama": lambda: tiny_config(400, tie_word_embeddings=True),
    "qwen2": lambda: cheap("qwen2"),
    "qwen3": lambda: cheap("qwen3", head_dim=8),
    "mistral with a window": lambda: cheap("mistral", sliding_window=16),
    "gemma2 with windows in every other layer": lambda: cheap(
        "gemma2", head_dim=8, sliding_window=16, attn_logit_softcapping=None
    ),
    "a mixture of experts": lambda: cheap(
        "qwen3_moe", head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32
    ),  # fmt: skip
}


def logps(config: Any, corpus: Corpus, rows: list[Indices], *, share_prompt: bool) -> tuple[Tensor, list[Tensor]]:
    """logps_A, and the gradient of a weighted sum of them."""
    attention.register()
    model = tiny_model(config)
    model.set_attn_implementation(attention.NAME)
    scorer = CausalScorer(model, max_tokens=2048)
    batch = Pairs(share_prompt=share_prompt).collate(corpus, rows)
    logps_A = answer_logps(lambda given: scorer(*given.inputs(torch.device("cpu"))), batch)
    (logps_A * torch.linspace(1, 2, len(logps_A))).sum().backward()
    return logps_A.detach(), [p.grad for p in scorer.parameters() if p.grad is not None]


def rows_of(*rows: list[int]) -> list[Indices]:
    import numpy as np

    return [np.array(row) for row in rows]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_probabilities_and_gradients_are_those_of_separate_rows(corpus: Corpus, name: str) -> None:
    rows = rows_of([0, 3, 5], [1], [2, 7], [4, 6])
    one, ours = logps(ARCHITECTURES[name](), corpus, rows, share_prompt=True)
    other, theirs = logps(ARCHITECTURES[name](), corpus, rows, share_prompt=False)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    assert len(ours) == len(theirs) > 5
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()) + 1e-6)


def test_a_shared_prompt_is_computed_once(corpus: Corpus) -> None:
    rows = rows_of(list(range(8)))
    shared, separate = (Pairs(share_prompt=share).collate(corpus, rows).tokens for share in (True, False))
    prompt_N = corpus.parts_N3[:, 0]
    assert separate - shared == (prompt_N - 1).sum()
