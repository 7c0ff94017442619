"""The demo: from a stock model to one that knows security, with the numbers before and after. `make demo` runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import corpus
import model
import sources

HERE = Path(__file__).parent
TOP = HERE.parent.parent
DEMO = Path("runs/demo")
# Every how many records one is kept for the evaluation during the demo: 8,000, 5,000, 3,000 and 13,000 tokens remain.
SAMPLED = {"unseen": 6, "general": 40, "chats_unseen": 16, "preferences_unseen": 4}
MEASURED = ("unseen", "general")
QUESTIONS = 2  # that are shown; all are answered
MODELS = {"before": DEMO / "base", "after": DEMO / "sft"}
ANSWER_CHARACTERS = 240


def main() -> int:
    """Run every step, print the table, write runs/demo/summary.json; return the exit status."""
    os.chdir(TOP)
    started = time.monotonic()
    try:
        say(1, "fetching the model and the texts")
        found = sources.fetch(DEMO / "downloads")
        say(2, "converting SmolLM2-135M to safetensors (once, half a minute)")
        model.convert(found["model"], DEMO / "base")
        say(3, "building the corpus")
        corpus.build(found, DEMO / "corpus")
    except (sources.SourceError, model.ModelError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, every in SAMPLED.items():
        sample(DEMO / "corpus" / f"{name}.jsonl", every)
    say(4, "training: three jobs, one command")
    jobs = [str((HERE / f"{name}.yaml").relative_to(TOP)) for name in ("pretrain", "sft", "preference")]
    print("  $ velocity run", *jobs, flush=True)
    status = subprocess.run([sys.executable, "-m", "velocity", "run", *jobs], check=False).returncode
    if status:
        return status
    say(5, "asking both models about entities that training never described")
    for when, model_path in MODELS.items():
        job = str((HERE / "generate.yaml").relative_to(TOP))
        command = ["run", job, f"model={model_path}", f"output={DEMO}/answers_{when}"]
        print("  $ velocity", *command, flush=True)
        status = subprocess.run([sys.executable, "-m", "velocity", *command], check=False).returncode
        if status:
            return status
    summary = summarise(side_by_side(), time.monotonic() - started)
    (DEMO / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    show(summary)
    return 0


def say(number: int, what: str) -> None:
    """A headline of the demo."""
    print(f"[{number}/5] {what}", flush=True)


def sample(path: Path, every: int) -> None:
    """`NAME_sample.jsonl` holds every so-manieth record of `NAME.jsonl`."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.with_name(f"{path.stem}_sample.jsonl").write_text("".join(lines[::every]), encoding="utf-8")


def side_by_side() -> list[dict[str, str]]:
    """Every question with what both models and the source answer; the completions come in the questions' order."""
    before, after = (
        [json.loads(line) for line in (DEMO / f"answers_{when}" / "completions.jsonl").read_text("utf-8").splitlines()]
        for when in MODELS
    )
    return [
        {
            "question": one["messages"][0]["content"],
            "before": one["completion"],
            "after": other["completion"],
            "source": one["messages"][1]["content"],
        }
        for one, other in zip(before, after, strict=True)
    ]


def summarise(questions: list[dict[str, str]], seconds: float) -> dict[str, Any]:
    """Perplexities from the two runs' metrics.jsonl, with the answers of the models and of the source."""
    evaluations = {"before": evaluation("pretrain", first=True), "after": evaluation("sft", first=False)}
    return {
        **{
            when: {f"{name}_perplexity": found[name]["perplexity"] for name in MEASURED}
            for when, found in evaluations.items()
        },
        "fine_tuning": {
            f"{when}_answers_perplexity": evaluation("sft", first=first)["answers"]["perplexity"]
            for when, first in (("before", True), ("after", False))
        },
        "preference_pairs": evaluation("preference", first=True)["unseen"]["pairs"],
        **{
            kind: {
                when: evaluation("preference", first=first)["unseen"][key]
                for when, first in (("before", True), ("after", False))
            }
            for kind, key in (("preference_accuracy", "preference_accuracy"), ("reward_accuracy", "accuracy"))
        },
        "questions": questions,
        "seconds": round(seconds, 1),
    }


def evaluation(run: str, *, first: bool) -> dict[str, Any]:
    """The first or the last evaluation of a run."""
    lines = [json.loads(line) for line in (DEMO / run / "metrics.jsonl").read_text().splitlines()]
    results: list[dict[str, Any]] = [line["eval"] for line in lines if "eval" in line]
    return results[0 if first else -1]


def show(summary: dict[str, Any]) -> None:
    """The table, the answers, and where things are."""
    console = Console(highlight=False)
    table = Table("perplexity; accuracy", "before", "after", "change", title="What the training changed")
    for name, words in (
        ("unseen", "unseen security entities (until fine-tuned)"),
        ("general", "general English (until fine-tuned)"),
    ):
        before, after = (summary[when][f"{name}_perplexity"] for when in ("before", "after"))
        table.add_row(words, f"{before:.2f}", f"{after:.2f}", f"{after / before - 1:+.1%}")
    before, after = (summary["fine_tuning"][f"{when}_answers_perplexity"] for when in ("before", "after"))
    words = "answers about them (by the fine-tuning alone)"
    table.add_row(words, f"{before:.2f}", f"{after:.2f}", f"{after / before - 1:+.1%}")
    for kind, words in (
        ("preference_accuracy", f"true answer more likely, of {summary['preference_pairs']} unseen pairs"),
        ("reward_accuracy", "… has gained more than the false one"),
    ):
        before, after = summary[kind]["before"], summary[kind]["after"]
        table.add_row(words, f"{before:.0%}", f"{after:.0%}", f"{100 * (after - before):+.0f} points")
    console.print(table)
    questions = summary["questions"]
    for asked in questions[:: len(questions) // QUESTIONS][:QUESTIONS]:
        console.print(f"\n[bold]Q[/bold] {asked['question']}", markup=True)
        for when in ("before", "after", "source"):
            text = " ".join(asked[when].split()) or "(nothing)"
            console.print(f"  {when}: {text[:ANSWER_CHARACTERS]}{' …' * (len(text) > ANSWER_CHARACTERS)}", markup=False)
    console.print(f"\nAll {len(questions)} answers: {DEMO}/summary.json, {DEMO}/answers_after/completions.jsonl")
    console.print(
        f"The tuned model: {DEMO}/preference/model   the runs: velocity show {DEMO}/pretrain (/sft, /preference)"
    )
    console.print(f"The numbers: {DEMO}/summary.json   in all {summary['seconds']:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
