"""A judge scores as the scorer does, and knows which labels the model would have chosen."""

from __future__ import annotations

import torch

from tests.making import tiny_config, tiny_model
from velocity.batch import IGNORED, Batch
from velocity.models import attention
from velocity.models.judge import Judge
from velocity.models.scorer import CausalScorer


def packed(ids: torch.Tensor, labels: torch.Tensor, lengths: tuple[int, ...]) -> Batch:
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Batch(ids[None], positions[None], labels[None], (lengths,))


def test_a_judges_scores_are_the_scorers_and_its_verdict_is_that_of_all_logits():
    attention.register()
    model = tiny_model(tiny_config(97, attn_implementation=attention.NAME)).eval()
    ids = torch.randint(97, (12,), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        scorer = CausalScorer(model, 12)
        logits_SV = scorer.whole_logits(ids[:7])
        labels = torch.cat([logits_SV.argmax(-1)[:3], ids[3:6], torch.tensor([IGNORED] * 6)])
        batch = packed(ids, labels, (7, 5))
        judged_2BS = Judge(model, 12)(*batch.inputs(torch.device("cpu")))
        assert torch.allclose(judged_2BS[0], scorer(*batch.inputs(torch.device("cpu"))), atol=1e-5)
    likeliest = [float(label == best) for label, best in zip(labels[:6], logits_SV.argmax(-1)[:6], strict=True)]
    assert judged_2BS[1, 0].tolist() == [*likeliest, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert likeliest[:3] == [1.0, 1.0, 1.0] and 0.0 in likeliest


def test_without_a_label_nothing_is_judged():
    attention.register()
    model = tiny_model(tiny_config(97, attn_implementation=attention.NAME)).eval()
    ids = torch.zeros(3, dtype=torch.long)
    batch = packed(ids, torch.full((3,), IGNORED), (3,))
    with torch.inference_mode():
        assert Judge(model, 3)(*batch.inputs(torch.device("cpu"))).tolist() == [[[0.0] * 3], [[0.0] * 3]]
