"""What a step is reported as: rates, memory, and the share of a GPU's arithmetic that was used."""

from __future__ import annotations

import re

# Dense 16-bit matrix rates in FLOP/s, from the vendor's data sheets.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "A10": 125e12,
    "A10G": 70e12,
    "L4": 121e12,
}


def model_flops_utilisation(
    parameters: int, trained: int, tokens_per_second: float, gpu: str, gpus: int
) -> float | None:
    """The arithmetic of a token over the GPUs' peak; None for a GPU whose peak is not known.

    2 FLOP a parameter forward and 2 for the activations' gradients, 2 more for each parameter that is trained: 6 in
    all where everything is (arXiv 2204.02311, appendix B, without attention).
    """
    peak = next((PEAK_FLOPS[word] for word in re.split(r"\W|_", gpu) if word in PEAK_FLOPS), None)
    return None if peak is None else (4 * parameters + 2 * trained) * tokens_per_second / (peak * gpus)
