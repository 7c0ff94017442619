"""Which of a run's checkpoints are kept, in its folder and at its mirror alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from velocity.config.sections import CheckpointConfig
from velocity.runs.folder import RunFolder


class Retention:
    """The newest `keep`, every `keep_every`-th step's, and the one with the least loss on the set `best`."""

    def __init__(self, config: CheckpointConfig, losses: Mapping[int, float] | None = None) -> None:
        """`losses` are those on the set `best` so far, by step."""
        self.config = config
        self._losses = dict(losses or {})

    def note(self, step: int, losses: Mapping[str, float]) -> None:
        """The evaluation sets have these losses after that step."""
        if self.config.best is not None:
            self._losses[step] = losses[self.config.best]

    def kept(self, steps: Sequence[int]) -> set[int]:
        """Those that are kept of some checkpoints' steps, oldest first."""
        kept = set(steps[-self.config.keep :])
        if self.config.keep_every:
            kept |= {step for step in steps if step % self.config.keep_every == 0}
        if scored := [step for step in steps if step in self._losses]:
            kept.add(min(scored, key=lambda step: self._losses[step]))
        return kept


def judged_by(run: RunFolder, config: CheckpointConfig) -> dict[int, float]:
    """The losses that decide which is best, by step, as metrics.jsonl has them."""
    lines, best = run.lines(), config.best
    return {line["step"]: line["eval"][best]["loss"] for line in lines if best in line.get("eval", {})}
