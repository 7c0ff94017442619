"""The learning rate of a step. A pure function of the step, so a resumed run needs no scheduler state."""

from __future__ import annotations

import math

from velocity.config.sections import ScheduleConfig


def learning_rate(config: ScheduleConfig, step: int, total: int) -> float:
    """The rate of step `step` (from 0) of `total`: linear warmup, then the schedule down to `final` of the peak.

    wsd holds the peak and decays linearly over the last `decay` of the run: arXiv 2404.06395, section 4.
    """
    warmup = warmup_steps(config, total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(total - warmup, 1)
    return config.learning_rate * (config.final + (1 - config.final) * _shape(config, progress, step, total))


def warmup_steps(config: ScheduleConfig, total: int) -> int:
    """Warmup in steps, where it is given as a share of the run, too."""
    return round(config.warmup if config.warmup >= 1 else config.warmup * total)


def _shape(config: ScheduleConfig, progress: float, step: int, total: int) -> float:
    """From 1 at the peak to 0 at the end."""
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - progress
        case "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        case "wsd":
            return min(1.0, (total - step) / max(config.decay * total, 1))
