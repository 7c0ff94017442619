"""What a finished run leaves: the tuned model, or its adapter, with a card that says what was done."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from velocity import __version__
from velocity.config.training import TrainingJob
from velocity.data.tokenizer import load_tokenizer, turn_ends
from velocity.distributed import comm
from velocity.distributed.comm import Ranks
from velocity.models.adapters import save_adapter
from velocity.models.export import model_card, save_model
from velocity.runs.folder import RunFolder
from velocity.training.build import Built


def save_result(run: RunFolder, job: TrainingJob, built: Built, environment: Mapping[str, Any], ranks: Ranks) -> None:
    """model/ is there and the run is complete. Every rank calls it."""
    weights = built.engine.weights()
    if ranks.first:
        folder = Path(environment["model_folder"])
        tokenizer = load_tokenizer(folder, job.data.chat_template, remote_code=job.model.trust_remote_code)
        lines = [line for line in run.lines() if "loss" in line]
        card = model_card({
            "base": job.model.path,
            "name": run.path.name,
            "version": __version__,
            "task": job.task,
            "trained": "all parameters" if job.adapter is None else f"an adapter ({job.adapter.kind})",
            "library": "transformers" if job.adapter is None else "peft",
            "steps": len(lines),
            "tokens": sum(line["tokens"] for line in lines),
            "sources": environment["data"]["train"],
            "results": [(*what, str(before), str(after)) for *what, before, after in run.results()],
            "settings": job.model_dump(mode="json", exclude={"data", "launch"}),
        })  # fmt: skip
        if built.adapter is None:
            save_model(built.scorer.model, weights, tokenizer, run.model, card, turn_ends=turn_ends(tokenizer))
        else:
            shutil.rmtree(run.merged, ignore_errors=True)  # of an adapter that was trained for fewer steps
            save_adapter(built.adapter, weights, tokenizer, run.model, card)
        run.set_status("complete", steps=len(lines))
    comm.wait_for_all()
