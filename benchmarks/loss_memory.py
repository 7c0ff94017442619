"""How much memory does the loss take at its peak, with whole logits and with Velocity's chunked head?"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import contest
from contest import Result, peak_bytes
from reporting import Figure, Report, machine, parser, publish, ratio

TITLES = {"whole": "whole logits", "chunked": "chunked head"}
COLUMNS = ("head and loss, forward and backward", "peak MiB", "seconds", "loss")
SMOLLM2 = (49_152, 576)  # vocabulary, hidden size
MIB = 2**20


def _inputs(vocabulary: int, hidden: int, tokens: int) -> tuple[Any, Any, Any]:
    """Head weight and hidden states with room for their gradients, and labels: what any loss has before it starts."""
    import torch

    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(vocabulary, hidden) * 0.02)
    hidden_TD = torch.randn(tokens, hidden, requires_grad=True)
    weight.grad, hidden_TD.grad = torch.ones_like(weight).zero_(), torch.ones_like(hidden_TD).zero_()
    (torch.ones(64, 64) @ torch.ones(64, 64)).sum()  # the matrix library has its threads and buffers
    return weight, hidden_TD, torch.randint(0, vocabulary, (tokens,))


def baseline(weight: Any, hidden_TD: Any, labels_T: Any) -> Any:
    """No loss at all, and the gradient of the weight that backward makes before it adds it to the one that is there."""
    import torch

    with torch.no_grad():
        weight.grad += torch.zeros_like(weight)
    return hidden_TD.detach().sum() * 0


def whole(weight: Any, hidden_TD: Any, labels_T: Any) -> Any:
    """As a model of transformers does it."""
    import torch.nn.functional as F

    loss = F.cross_entropy((hidden_TD @ weight.T).float(), labels_T, reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def chunked(weight: Any, hidden_TD: Any, labels_T: Any) -> Any:
    """Velocity's scorer around a model whose body does nothing."""
    import torch

    from velocity.models.scorer import CausalScorer

    scorer = CausalScorer(_headed(weight, hidden_TD), len(labels_T))
    ids_BS = torch.zeros((1, len(labels_T)), dtype=torch.long)
    logps_BS = scorer(ids_BS, ids_BS, labels_T[None], ((len(labels_T),),))
    loss = -logps_BS.sum()
    loss.backward()
    return loss


def _headed(weight: Any, hidden_TD: Any) -> Any:
    """A causal model that answers every input with `hidden_TD`."""
    import torch

    class Headed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            self.head.weight = weight
            self.base_model = lambda **inputs: SimpleNamespace(last_hidden_state=hidden_TD[None])
            text = SimpleNamespace(vocab_size=len(weight))
            self.config = SimpleNamespace(get_text_config=lambda: text)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    return Headed()


LOSSES: Mapping[str, Callable[..., Any]] = {"baseline": baseline, "whole": whole, "chunked": chunked}


def child(name: str, vocabulary: int, hidden: int, tokens: int) -> Result:
    """The peak of one process."""
    import time

    inputs = _inputs(vocabulary, hidden, tokens)
    started = time.perf_counter()
    loss = float(LOSSES[name](*inputs)) / tokens
    return {"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes(), "loss": loss}


def report(results: Mapping[str, Result], tokens: int) -> Report:
    """Peaks above the baseline, and their ratio."""
    own = {name: results[name]["peak_bytes"] - results["baseline"]["peak_bytes"] for name in TITLES}
    rows = [
        [title, f"{own[name] / MIB:,.0f}", f"{results[name]['seconds']:.2f}", f"{results[name]['loss']:.5f}"]
        for name, title in TITLES.items()
    ]
    figures = [
        Figure("whole logits against the chunked head", ratio(own["whole"], own["chunked"]), target=1.0),
        Figure("time of the chunked head", ratio(results["chunked"]["seconds"], results["whole"]["seconds"])),
    ]
    vocabulary, hidden = SMOLLM2
    notes = [
        f"{tokens:,} labels, vocabulary {vocabulary:,}, hidden size {hidden}, fp32; peak resident memory of a process "
        "of its own, less that of one with weight, hidden states and gradients alone",
        f"the logits themselves are {tokens * vocabulary * 4 / MIB:,.0f} MiB",
    ]
    facts = {"tokens": tokens, "vocabulary": vocabulary, "hidden": hidden, "results": dict(results)}
    return Report("loss_memory", str(__doc__), COLUMNS, rows, figures, notes, facts)


def measure(tokens: int, rounds: int) -> Report:
    """Every loss in processes of its own."""
    with tempfile.TemporaryDirectory() as folder:
        environment = contest.plain_environment(Path(folder))
        sizes = [*map(str, SMOLLM2), str(tokens)]

        def run(name: str) -> Result:
            return contest.run_script(Path(__file__), ["--child", name, *sizes], environment)

        return report(contest.hold(list(LOSSES), rounds, run, least="peak_bytes"), tokens)


def main() -> None:
    """The command line."""
    options = parser(str(__doc__))
    options.add_argument("--tokens", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=2)
    given = options.parse_args()
    before = machine()
    publish(measure(given.tokens, 1 if given.quick else given.rounds), before, save=given.save)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(child(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main()
