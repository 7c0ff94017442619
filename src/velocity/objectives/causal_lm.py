"""Next-token prediction: the negative log-likelihood of the trained tokens. Shape letters: B rows, S tokens."""

from __future__ import annotations

from collections.abc import Iterable

from velocity.batch import Batch
from velocity.objectives.objective import LossOutput, Policy, SharedPolicy


class CausalLM:
    """Maximum likelihood, a token a unit; for pre-training and for supervised fine-tuning alike."""

    unit = "tokens"

    def units(self, batch: Batch) -> int:
        """Trained tokens."""
        return batch.trained

    def prepare(self, policy: SharedPolicy, batches: Iterable[Batch]) -> None:
        """Nothing: each token's loss is its own."""

    def __call__(self, policy: Policy, batch: Batch) -> LossOutput:
        """The sum of -log p over the trained tokens, in nats."""
        logps_BS = policy(batch)
        return LossOutput(total=-logps_BS.sum())
