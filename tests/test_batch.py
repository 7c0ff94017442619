"""What a batch counts."""

from __future__ import annotations

import torch

from velocity.batch import IGNORED, Batch


def test_a_batch_counts_its_tokens_without_padding_and_its_labels():
    labels_BS = torch.tensor([[5, IGNORED, 6, 7], [IGNORED, 8, IGNORED, IGNORED]])
    batch = Batch(torch.zeros(2, 4), torch.zeros(2, 4), labels_BS, ((2, 2), (3,)))
    assert (batch.tokens, batch.trained) == (2 + 2 + 3, 4)


def test_a_label_that_is_token_zero_is_a_label():
    batch = Batch(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[0, IGNORED]]), ((2,),))
    assert batch.trained == 1
