"""The parity matrix: every way to spread a model, compared with one plain process. `--save` writes docs/parity.md.

`python -m tests.invariance.parity --save` runs what test_parity.py asserts, and writes down how far each one was off.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.making import tiny_model_folder, write_jsonl
from tests.pool import Pool
from tests.running import WORDS, Steps, preference_steps, ragged_rows, steps_on
from velocity.distributed.comm import Ranks

PAGE = Path(__file__).parents[2] / "docs" / "parity.md"
CPU = {"strategy.offload.optimizer": "cpu"}
BOTH = {**CPU, "strategy.offload.parameters": "cpu"}
LAYERS = {"strategy.recompute": "layers"}


@dataclass(frozen=True)
class Spread:
    """A strategy, on so many ranks."""

    name: str
    ranks: int
    changes: Mapping[str, Any]


def _zero(stage: int, **more: Any) -> dict[str, Any]:
    return {"strategy.zero": stage, **{f"strategy.{key}": value for key, value in more.items()}}


MATRIX = (
    *(Spread(f"ZeRO {stage}", 2, _zero(stage)) for stage in (0, 1, 2, 3)),
    *(Spread(f"ZeRO {stage}, layers recomputed", 2, {**_zero(stage), **LAYERS}) for stage in (1, 3)),
    *(Spread(f"ZeRO {stage}, optimizer on cpu", 2, {**_zero(stage), **CPU}) for stage in (1, 2, 3)),
    Spread("ZeRO 3, optimizer and parameters on cpu", 2, {**_zero(3), **BOTH}),
    Spread("ZeRO 3, activations on cpu", 2, {**_zero(3), **LAYERS, "strategy.offload.activations": "cpu"}),
    *(Spread(f"tensor 2, ZeRO {stage}", 2, _zero(stage, tensor=2)) for stage in (1, 2, 3)),
    Spread("tensor 2, ZeRO 1, layers recomputed", 2, {**_zero(1, tensor=2), **LAYERS}),
    Spread("pipeline 2, ZeRO 1", 2, _zero(1, pipeline=2)),
    Spread("pipeline 2, ZeRO 1, layers recomputed", 2, {**_zero(1, pipeline=2), **LAYERS}),
    *(Spread(f"sequence 2, ZeRO {stage}", 2, _zero(stage, sequence=2)) for stage in (0, 1, 2, 3)),
    Spread("sequence 2, ZeRO 3, layers recomputed, all on cpu", 2, {**_zero(3, sequence=2), **LAYERS, **BOTH}),
    *(Spread(f"data 2 x tensor 2, ZeRO {stage}", 4, _zero(stage, tensor=2)) for stage in (1, 3)),
    Spread("data 2 x pipeline 2, ZeRO 1", 4, _zero(1, pipeline=2)),
    *(Spread(f"data 2 x sequence 2, ZeRO {stage}", 4, _zero(stage, sequence=2)) for stage in (1, 3)),
    Spread("ZeRO 3 on four", 4, _zero(3)),
)
OPTIMIZERS = {
    "sgd": {"kind": "sgd", "learning_rate": 0.1, "schedule": "constant", "warmup": 0, "gradient_clipping": 0.5},
    "adamw": {"kind": "adamw", "learning_rate": 1e-3, "gradient_clipping": 0.5},
}
TASKS: dict[str, dict[str, Any]] = {
    "pretrain": {"task": "pretrain", "batch.micro": 1},
    "sft": {"task": "sft"},
    "preference": {
        "task": "preference", "batch.rows": 6, "batch.micro": 2, "data.sequence_length": 256,
        "preference": {"kind": "dpo", "sft_weight": 0.5},
    },
}  # fmt: skip


def prepare(folder: Path) -> Path:
    """`folder` holds a folder a task, with its data and the same tiny model."""
    for task in TASKS:
        tiny_model_folder(folder / task / "model", tied=task == "sft")
        write_jsonl(folder / task / "train.jsonl", _rows(task))
    return folder


def _rows(task: str) -> list[dict[str, Any]]:
    if task == "pretrain":
        return [{"text": _words(i, 1 + 7 * i * i % 40)} for i in range(60)]
    if task == "sft":
        return ragged_rows()
    return [
        {"prompt": "Why? " * (1 + i % 4), "chosen": _words(i, 1 + 7 * i % 20), "rejected": _words(i + 3, 2 + i % 17)}
        for i in range(30)
    ]


def _words(first: int, count: int) -> str:
    return " ".join(WORDS[(first + i) % len(WORDS)] for i in range(count))


def steps(ranks: Ranks, folder: Path, task: str, optimizer: str, changes: Mapping[str, Any]) -> Steps:
    """(loss, gradient norm) of six steps on one of a pool's ranks; in plain PyTorch where there is no pool."""
    take = preference_steps if task == "preference" else steps_on
    return take(ranks, folder / task, {**TASKS[task], "optimizer": OPTIMIZERS[optimizer], **changes})


def gap(found: Steps, expected: Steps) -> float:
    """The largest relative difference of a loss or a gradient norm (absolute, where they are below 1)."""
    pairs = [pair for one, other in zip(found, expected, strict=True) for pair in zip(one, other, strict=True)]
    return max(abs(ours - theirs) / max(1.0, abs(theirs)) for ours, theirs in pairs)


def main() -> None:
    """Run all, print a table, and write it where --save is given."""
    lines = ["| strategy | processes | " + " | ".join(f"{t}, {o}" for t in TASKS for o in OPTIMIZERS) + " |"]
    lines.append("|---" * (2 + len(TASKS) * len(OPTIMIZERS)) + "|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepare(Path(temporary))
        cells = [(task, optimizer) for task in TASKS for optimizer in OPTIMIZERS]
        expected = {cell: steps(Ranks(), folder, *cell, {}) for cell in cells}
        pools = {size: Pool(size) for size in (2, 4)}
        for spread in MATRIX:
            found = [pools[spread.ranks](steps, folder, *cell, spread.changes)[0] for cell in cells]
            gaps = [f"{gap(one, expected[cell]):.0e}" for one, cell in zip(found, cells, strict=True)]
            lines.append(f"| {spread.name} | {spread.ranks} | " + " | ".join(gaps) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
        for pool in pools.values():
            pool.close()
    print("\n".join(lines))
    if "--save" in sys.argv:
        before, _, _ = PAGE.read_text("utf-8").partition("<!-- table -->")
        PAGE.write_text(before + "<!-- table -->\n" + "\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
