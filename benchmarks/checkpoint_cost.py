"""What does a checkpoint cost: of the steps beside it, in seconds and bytes, against DeepSpeed's own?"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from contest import peak_bytes
from reporting import Figure, Report, machine, parser, publish, ratio

EVERY = 20  # steps between saves
MIB = 2**20
COLUMNS = ("what", "training waits, s", "until it is there, s", "MiB", "load, s")


def build_engine(hidden: int, layers: int) -> tuple[Any, Any]:
    """A Llama with random weights under ZeRO 1 in fp32 with AdamW, on one process; and what it is trained for."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from velocity.config.strategy import StrategyConfig
    from velocity.distributed import comm
    from velocity.distributed.deepspeed_engine import DeepSpeedEngine
    from velocity.distributed.mesh import build_mesh
    from velocity.models import attention
    from velocity.models.scorer import CausalScorer
    from velocity.objectives.causal_lm import CausalLM

    torch.manual_seed(0)
    attention.register()
    shape = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    config = LlamaConfig(**shape, vocab_size=16_384, num_attention_heads=8, num_key_value_heads=4)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME)
    scorer = CausalScorer(model, 1024)
    settings = {"train_micro_batch_size_per_gpu": 1, "gradient_clipping": 1.0, "zero_optimization": {"stage": 1},
                "managed_gradient_accumulation": False, "steps_per_print": 10**9}  # fmt: skip
    optimizer = torch.optim.AdamW(scorer.parameters(), 1e-5, fused=True)
    strategy = StrategyConfig(zero=1, tensor=1, pipeline=1, sequence=1)
    mesh = build_mesh(strategy, comm.from_environment())
    return DeepSpeedEngine(scorer, optimizer, settings, mesh, 1.0), CausalLM()


def build_batch(tokens: int) -> Any:
    """One row of random tokens."""
    import numpy as np

    from velocity.data.collate import collate, whole
    from velocity.data.encode import TokenSequence

    ids = np.random.default_rng(0).integers(0, 16_384, tokens, dtype=np.int32)
    return collate([[whole(TokenSequence(ids, np.ones(tokens, dtype=np.uint8)))]], ["random"])


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def overhead(
    step: Callable[[], None], save: Callable[[], None], finish: Callable[[], None], rounds: int
) -> list[float]:
    """Of each round: by how much EVERY steps with a save at their begin take longer than as many without one."""
    found = []
    for number in range(rounds):
        blocks = {False: 0.0, True: 0.0}
        for saves in (False, True) if number % 2 else (True, False):  # neither is always the first

            def block(saves: bool = saves) -> None:
                if saves:
                    save()
                for _ in range(EVERY):
                    step()

            blocks[saves] = seconds(block)
            finish()  # what is still being written is not to slow the other block
        found.append(blocks[True] / blocks[False] - 1)
    return found


def theirs(engine: Any, folder: Path) -> list[str]:
    """DeepSpeed's own checkpoint of the same engine."""
    saved = seconds(lambda: engine.engine.save_checkpoint(str(folder), tag="step"))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    loaded = seconds(lambda: engine.engine.load_checkpoint(str(folder), tag="step"))
    shutil.rmtree(folder)
    return ["DeepSpeed's own", f"{saved:.2f}", f"{saved:.2f}", f"{size / MIB:.0f}", f"{loaded:.2f}"]


def ours(engine: Any, folder: Path, *, background: bool) -> list[str]:
    """Velocity's, which any number of ranks can load; its files are hashed, and checked before they are loaded."""
    from velocity.config.sections import CheckpointConfig
    from velocity.training.checkpoint import Checkpoints, TrainState

    checkpoints = Checkpoints(folder, CheckpointConfig(background=background), engine.mesh.ranks)
    for number in (1, 2):  # the first one also makes the copy's memory
        checkpoints.save(engine, TrainState(step=number), wait=True)
    report = checkpoints.reports()[-1]
    loaded = seconds(lambda: checkpoints.resume(engine))
    shutil.rmtree(folder)
    name = "Velocity's, in the background" if background else "Velocity's, at once"
    return [
        name,
        f"{report.blocked_seconds:.2f}",
        f"{report.seconds:.2f}",
        f"{report.bytes / MIB:.0f}",
        f"{loaded:.2f}",
    ]


def measure(quick: bool, folder: Path) -> Report:
    """All figures, on one process."""
    from velocity.config.sections import CheckpointConfig
    from velocity.distributed import comm
    from velocity.training.checkpoint import Checkpoints, TrainState

    comm.start(comm.from_environment())
    engine, objective = build_engine(*((256, 2) if quick else (640, 8)))
    batch = build_batch(64 if quick else 256)
    parameters = sum(parameter.numel() for parameter in engine.scorer.parameters())

    def step() -> None:
        engine.learn(objective, [batch], batch.trained, 1e-5)

    step()
    checkpoints = Checkpoints(folder / "beside", CheckpointConfig(keep=1, background=True), engine.mesh.ranks)
    count = iter(range(1, 100))
    step_seconds = min(seconds(step) for _ in range(3))
    found = overhead(
        step, lambda: checkpoints.save(engine, TrainState(step=next(count))), checkpoints.finish, 1 if quick else 4
    )
    before = peak_bytes()
    rows = [theirs(engine, folder / "theirs")]
    rows += [ours(engine, folder / "ours", background=background) for background in (False, True)]
    figures = [
        Figure("a save every 20 steps, of the steps' time", 100 * sum(found) / len(found), "%", 5.0, at_most=True),
        Figure("bytes against DeepSpeed's", ratio(float(rows[1][3]), float(rows[0][3])), "x", 1.0, at_most=True),
        Figure("training waits, against DeepSpeed's", ratio(float(rows[2][1]) + 1e-3, float(rows[0][1])), "x"),
        Figure("until it is there, against DeepSpeed's", ratio(float(rows[2][2]), float(rows[0][2])), "x"),
    ]
    comm.stop()
    notes = [
        f"{parameters / 1e6:.0f} M parameters, ZeRO 1, AdamW, fp32, one process; a step takes {step_seconds:.2f} s",
        "rounds of 20 steps with a save and 20 without: " + ", ".join(f"{100 * one:+.1f} %" for one in found),
        f"peak memory of the process {before / MIB:.0f} MiB before, {peak_bytes() / MIB:.0f} MiB with DeepSpeed's own",
        "Velocity's files are hashed while they are written, and again before they are loaded",
    ]
    question = "What does a checkpoint cost?"
    return Report("checkpoint_cost", question, COLUMNS, rows, figures, notes)


def main() -> None:
    """Measure in this process, as a job of one rank."""
    options = parser(str(__doc__)).parse_args()
    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    os.environ.update(place, MASTER_ADDR="localhost", MASTER_PORT="0")
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        publish(measure(options.quick, Path(folder)), before, save=options.save)


if __name__ == "__main__":
    main()
