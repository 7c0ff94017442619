"""Log-probabilities of labels: those of the plain model's logits, whatever is packed, chunked, tied or padded.

Shape letters: B rows, S tokens of a row, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.making import tiny_config, tiny_model
from velocity.batch import IGNORED, Batch
from velocity.data.collate import collate, whole
from velocity.data.encode import TokenSequence
from velocity.models import attention
from velocity.models.scorer import CausalScorer, HeadRules, head_rules

VOCABULARY = 60
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip


def sequence(length: int, seed: int, trained: float = 0.6) -> TokenSequence:
    chance = np.random.default_rng(seed)
    mask = (chance.random(length) < trained).astype(np.uint8)
    return TokenSequence(chance.integers(0, VOCABULARY, length).astype(np.int32), mask)


SEQUENCES = [sequence(length, seed) for seed, length in enumerate((9, 1, 5, 12, 3))]
WHOLE = [whole(item) for item in SEQUENCES]
PACKED = collate([WHOLE[:3], WHOLE[3:]])


def scorer_of(config: Any, name: str = attention.NAME) -> CausalScorer:
    attention.register()
    model = tiny_model(config)
    model.set_attn_implementation(name)
    return CausalScorer(model, max_tokens=64)


def llama(**changes: Any) -> Any:
    return tiny_config(**{"vocabulary": VOCABULARY, **{k: v for k, v in SIZES.items() if k != "vocab_size"}, **changes})


def score(scorer: CausalScorer, batch: Batch) -> Tensor:
    logps_BS: Tensor = scorer(*batch.inputs(torch.device("cpu")))
    return logps_BS


def plain_logps(config: Any, item: TokenSequence) -> list[float]:
    """What plain transformers gives for each token that is trained on, of one sequence alone."""
    model = tiny_model(config)
    model.set_attn_implementation("eager")
    ids = torch.from_numpy(item.ids).long()
    logps_SV = model(input_ids=ids[None]).logits[0].float().log_softmax(-1)
    return [float(logps_SV[s - 1, ids[s]]) for s in range(1, len(ids)) if item.trained[s]]


def cheap(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **SIZES, **changes)


ARCHITECTURES = {
    "llama": lambda: llama(),
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "granite": lambda: cheap("granite", logits_scaling=4.0, embedding_multiplier=2.0, residual_multiplier=0.5),
    "cohere": lambda: cheap("cohere", logit_scale=0.25),
    "gemma2": lambda: cheap(
        "gemma2", head_dim=8, final_logit_softcapping=2.0, attn_logit_softcapping=None, sliding_window=4
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_packed_rows_are_those_of_plain_transformers_for_each_sequence(name: str):
    config = ARCHITECTURES[name]()
    logps_BS = score(scorer_of(config), PACKED)
    expected = [logp for item in SEQUENCES for logp in plain_logps(config, item)]
    trained_BS = PACKED.labels_BS != IGNORED
    # row by row, as the sequences lie: the first row holds 0, 1, 2, the second 3, 4
    assert logps_BS[trained_BS].tolist() == pytest.approx(expected, abs=1e-5)
    assert logps_BS[~trained_BS].abs().max() == 0
    assert torch.tensor(expected).std() > 0.1, "far from uniform: a wrong scale would be seen"


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_other_attention_implementations_isolate_by_position_ids(name: str):
    config = llama()
    one, other = score(scorer_of(config), PACKED), score(scorer_of(config, name), PACKED)
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_packed_rows_score_as_the_same_sequences_in_rows_of_their_own():
    scorer = scorer_of(llama())
    separate = collate([[piece] for piece in WHOLE])
    one, other = score(scorer, PACKED), score(scorer, separate)
    torch.testing.assert_close(
        one[PACKED.labels_BS != IGNORED], other[separate.labels_BS != IGNORED], rtol=0, atol=1e-5
    )


def test_padding_is_never_computed():
    scorer = scorer_of(llama())
    seen: list[int] = []
    scorer.model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].numel()))
    short_and_long = collate([[WHOLE[1]], [WHOLE[3]]])
    score(scorer, short_and_long)
    assert short_and_long.input_ids_BS.numel() == 24  # 2 rows x 12
    assert seen == [1 + 12]


def test_what_stands_in_the_padding_changes_nothing():
    scorer = scorer_of(llama())
    batch = collate([[WHOLE[4]], [WHOLE[3]]])
    other_ids = batch.input_ids_BS.clone()
    other_ids[0, 3:] = 7
    other = Batch(other_ids, batch.position_ids_BS, batch.labels_BS, batch.lengths_B)
    assert torch.equal(score(scorer, batch), score(scorer, other))


def test_the_head_runs_only_where_a_token_is_trained_on():
    scorer = scorer_of(llama())
    seen: list[int] = []
    scorer.model.get_output_embeddings().register_forward_hook(lambda *call: seen.append(call[2].shape[0]))
    score(scorer, PACKED)
    assert sum(seen) == PACKED.trained < PACKED.tokens


def run_with(chunks: int, tied: bool) -> tuple[Tensor, dict[str, Tensor]]:
    scorer = scorer_of(llama(tie_word_embeddings=tied))
    scorer.chunks = chunks
    logps_BS = score(scorer, PACKED)
    (logps_BS * torch.arange(logps_BS.numel()).reshape(logps_BS.shape)).sum().backward()
    gradients = {name: p.grad for name, p in scorer.named_parameters() if p.grad is not None}
    return logps_BS.detach(), gradients


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("chunks", [2, 5, 100])
def test_the_number_of_chunks_changes_neither_scores_nor_gradients(chunks: int, tied: bool):
    # 100 chunks of fewer than 30 labels: most chunks are empty, as on a rank that trains on little
    (logps, gradients), (expected, reference) = run_with(chunks, tied), run_with(1, tied)
    torch.testing.assert_close(logps, expected, rtol=0, atol=1e-6)
    assert gradients.keys() == reference.keys() and len(gradients) > 10
    for name, expected in reference.items():
        # relative to the whole tensor: fp32 rounds a sum by its terms, and small entries are sums of large ones
        assert float((gradients[name] - expected).norm() / expected.norm()) < 1e-5, name


def test_a_batch_that_trains_on_nothing_scores_zero_and_still_has_a_gradient():
    # a rank without a row has to take part in every collective of the backward pass
    scorer = scorer_of(llama())
    logps_BS = score(scorer, collate([]))
    assert logps_BS.tolist() == [[0.0]]
    logps_BS.sum().backward()
    assert scorer.model.get_output_embeddings().weight.grad is not None


def test_the_number_of_chunks_is_a_function_of_the_bound_alone():
    config = llama()
    model = tiny_model(config)
    # 2**28 bytes of fp32 logits at once: with 60 words 1,118,481 tokens, with 128 Ki words 512
    assert CausalScorer(model, 1_118_481).chunks == 1
    assert CausalScorer(model, 1_118_482).chunks == 2
    model.config.vocab_size = 1 << 17
    assert CausalScorer(model, 4096).chunks == 8


def test_scores_are_fp32_though_the_model_is_in_16_bit():
    scorer = scorer_of(llama()).to(torch.bfloat16)
    exact, rounded = score(scorer_of(llama()), PACKED), score(scorer, PACKED)
    assert rounded.dtype == torch.float32
    assert (exact - rounded).abs().max() < 0.3


def test_the_rules_of_a_head_are_read_from_the_configuration():
    assert head_rules(llama()) == HeadRules(1.0, None)
    assert head_rules(cheap("granite", logits_scaling=4.0)) == HeadRules(0.25, None)
    assert head_rules(cheap("cohere", logit_scale=0.5)) == HeadRules(0.5, None)
    assert head_rules(cheap("gemma2", final_logit_softcapping=30.0)) == HeadRules(1.0, 30.0)


def test_whole_logits_are_those_of_the_plain_model(tmp_path: Path):
    config = llama()
    plain = tiny_model(config)
    plain.set_attn_implementation("eager")
    ids_S = torch.from_numpy(SEQUENCES[3].ids).long()
    torch.testing.assert_close(scorer_of(config).whole_logits(ids_S), plain(ids_S[None]).logits[0], rtol=0, atol=1e-5)
