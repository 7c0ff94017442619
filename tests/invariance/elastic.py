"""Every strategy goes on from every other one's checkpoint: the pairs, compared. `--save` writes docs/elastic.md.

`python -m tests.invariance.elastic --save` runs all pairs; test_elastic.py asserts some, and as a slow test all.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.invariance.parity import gap
from tests.pool import Pool
from tests.running import Steps, built_on, make_job, prepare_folder, save_engine, take_steps
from velocity.checkpoints.pieces import restore
from velocity.distributed.comm import Ranks

PAGE = Path(__file__).parents[2] / "docs" / "elastic.md"
ADAMW = {"kind": "adamw", "learning_rate": 1e-2, "gradient_clipping": 0.5, "warmup": 0}
BEFORE, AFTER = 2, 2  # steps
OFFLOAD = {"strategy.offload.optimizer": "cpu"}
BOTH = {**OFFLOAD, "strategy.offload.parameters": "cpu"}


def strategy(zero: int, **more: Any) -> dict[str, Any]:
    """Dotted changes of a job."""
    return {"strategy.zero": zero, **{f"strategy.{key}": value for key, value in more.items()}}


# strategies by name, with the number of ranks
PLAIN = {f"ZeRO {zero} on {ranks}": (ranks, strategy(zero)) for zero in (0, 1, 2, 3) for ranks in (1, 2, 4)}
OTHERS = {
    "ZeRO 2, optimizer on cpu": (2, {**strategy(2), **OFFLOAD}),
    "ZeRO 3, both on cpu": (2, {**strategy(3), **BOTH}),
    "tensor 2, ZeRO 1": (2, strategy(1, tensor=2)),
    "tensor 2, ZeRO 3": (2, strategy(3, tensor=2)),
    "data 2 x tensor 2, ZeRO 1": (4, strategy(1, tensor=2)),
    "pipeline 2": (2, strategy(1, pipeline=2)),
    "data 2 x pipeline 2": (4, strategy(1, pipeline=2)),
    "sequence 2, ZeRO 3": (2, strategy(3, sequence=2)),
}
ALL = {**PLAIN, **OTHERS}


def saved(ranks: Ranks, folder: Path, changes: Mapping[str, Any], path: Path) -> Steps:
    """The steps that follow a save into `path`."""
    job = make_job(folder, {"optimizer": ADAMW, **changes})
    engine = built_on(job, ranks).engine
    take_steps(job, engine, ranks, BEFORE)
    save_engine(engine, path, ranks)
    steps = take_steps(job, engine, ranks, AFTER, start=BEFORE)
    engine.engine.destroy()
    return steps


def resumed(ranks: Ranks, folder: Path, changes: Mapping[str, Any], path: Path) -> Steps:
    """The steps that follow a load of what was saved there."""
    job = make_job(folder, {"optimizer": ADAMW, **changes})
    engine = built_on(job, ranks).engine
    restore(engine, path)
    steps = take_steps(job, engine, ranks, AFTER, start=BEFORE)
    engine.engine.destroy()
    return steps


def gaps(pools: Mapping[int, Pool], folder: Path, one: str) -> dict[str, float]:
    """For each strategy that goes on from what `one` saved: how far its next steps are off, at most."""
    size, changes = ALL[one]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "state"
        straight = pools[size](saved, folder, changes, path)[0]
        found = {}
        for name, (other, theirs) in ALL.items():
            found[name] = max(gap(steps, straight) for steps in pools[other](resumed, folder, theirs, path))
    return found


def main() -> None:
    """Run all pairs, print a table, and write it where --save is given."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = prepare_folder(Path(temporary), tied=True)
        pools = {size: Pool(size) for size in (1, 2, 4)}
        lines = ["| saved by, going on with | " + " | ".join(str(number) for number in range(1, len(ALL) + 1)) + " |"]
        lines.append("|---" * (1 + len(ALL)) + "|")
        for number, name in enumerate(ALL, start=1):
            cells = [f"{one:.0e}" if one else "0" for one in gaps(pools, folder, name).values()]
            lines.append(f"| {number}. {name} | " + " | ".join(cells) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
        for pool in pools.values():
            pool.close()
    text = "\n".join([HEAD, *lines]) + "\n"
    print(text)
    if "--save" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")


HEAD = """# Going on elsewhere

What `python -m tests.invariance.elastic --save` measured: two steps (AdamW, fp32, a tiny Llama with tied embeddings), a
checkpoint, and the two steps behind it, by the strategy that saved (rows) and by each one that loaded it (columns,
numbered as the rows are). Each number is the largest difference of a loss or a gradient norm, relative where they are
above 1; `0` is the same to the last bit. "on 4" is four processes. Some pairs are held to 1e-5 by `make test`, all by
`make test-slow` (`tests/invariance/test_elastic.py`).
"""


if __name__ == "__main__":
    main()
