"""A causal model that scores labels and says which of them it would have chosen itself. It is never trained.

Shape letters: B rows, S tokens of a row, T tokens of all rows without padding, N labels, D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from velocity.batch import IGNORED
from velocity.models.scorer import CausalScorer, Rows, bounds_of, in_places, real_tokens


class Judge(CausalScorer):
    """A scorer of two numbers a label."""

    def forward(
        self, input_ids_BS: Tensor, position_ids_BS: Tensor, labels_BS: Tensor, lengths_B: Rows, shared_B: Rows = ()
    ) -> Tensor:
        """judged_2BS in fp32: log-probabilities of the labels, and 1 where no token is likelier; 0 without a label."""
        real_BS = real_tokens(labels_BS, lengths_B)
        labels_T = labels_BS[real_BS]
        bounds = bounds_of(lengths_B, shared_B, labels_BS.device)
        hidden_TD = self.hidden(input_ids_BS[real_BS], position_ids_BS[real_BS], bounds)
        trained_T = labels_T != IGNORED
        # as many chunks on every rank: each gathers the head where weights are split
        chunks = zip(
            hidden_TD[trained_T].tensor_split(self.chunks), labels_T[trained_T].tensor_split(self.chunks), strict=True
        )
        judged_2N = torch.cat([self._judge(hidden_ND, labels_N) for hidden_ND, labels_N in chunks], dim=1)
        return torch.stack([in_places(in_places(values_N, trained_T), real_BS) for values_N in judged_2N])

    def head(self, hidden_ND: Tensor) -> Tensor:
        """The same, of one row: a head that DeepSpeed has split takes no less."""
        raw_1NV: Tensor = self.model.get_output_embeddings()(hidden_ND[None])
        return raw_1NV[0]

    def _judge(self, hidden_ND: Tensor, labels_N: Tensor) -> Tensor:
        logits_NV = self.logits(hidden_ND)
        logps_N = logits_NV.log_softmax(dim=-1).gather(1, labels_N[:, None])[:, 0]
        return torch.stack([logps_N, (logits_NV.argmax(dim=-1) == labels_N).float()])
