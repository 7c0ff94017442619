"""The comparison's figures: gathered from finished runs, shown as a table, drawn, kept. Knows no job and no corpus."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

TOP = Path(__file__).parent.parent.parent
WORDS = {
    "stock": "stock model",
    "stock-retrieval": "stock model + retrieval",
    "lora": "LoRA",
    "full": "full tuning",
    "full-retrieval": "full tuning + retrieval",
}
# a column's name, its set in evaluation.json, its measure there, and what stands above it
COLUMNS = (
    ("seen", "seen", "accuracy", "seen questions right"),
    ("unseen", "unseen", "accuracy", "unseen questions right"),
    ("texts", "texts", "perplexity", "perplexity of unseen texts"),
    ("general", "general", "perplexity", "perplexity of general English"),
)
# the same of what is told below the table
CHECKS = (
    ("held", "held", "accuracy", "held-out questions right"),
    ("options", "options", "accuracy", "seen questions right by their options alone"),
)
TRAINED = {"lora": ("lora-pretrain", "lora"), "full": ("full-pretrain", "full")}
CHANCE = 0.25
WIDTH = 140  # of the table

Result = dict[str, Any]


def gather(output: Path, models: Sequence[str], with_retrieval: Sequence[str]) -> Result:
    """Return the figures of every finished evaluation below the folder, each with its difference from the stock model.

    Retrieval changes what stands before a question: the perplexities of a model with it are those of the model.
    """
    found: Result = {}
    for name in models:
        for kind in ("", "-retrieval") if name in with_retrieval else ("",):
            run = output / f"judged-{name}{kind}"
            sets = json.loads((run / "evaluation.json").read_text("utf-8"))["sets"]
            found[f"{name}{kind}"] = {
                column: _figure(run, output / "judged-stock", sets[where], where, measure)
                for column, where, measure, _ in (*COLUMNS, *CHECKS)
                if where in sets
            }
    trained = {name: _training(output, runs) for name, runs in TRAINED.items()}
    return {"figures": {name: found[name] for name in WORDS if name in found}, "training": trained}


def _figure(run: Path, stock: Path, told: Mapping[str, Any], where: str, measure: str) -> Result:
    """Return a measure's value and interval, the set's other measures, and what the stock model differs by."""
    from velocity.evaluation.differences import differences

    figure = {key: told["measures"][measure][key] for key in ("value", "low", "high")}
    others = {name: values["value"] for name, values in told["measures"].items() if name != measure}
    result = {**figure, "rows": told["rows"], "others": others}
    if run == stock:
        return result
    ours, theirs = (_rows(folder / "rows" / f"{where}.jsonl") for folder in (run, stock))
    return {**result, "against_stock": differences(where, told["kind"], ours, theirs).get(measure)}


def _rows(path: Path) -> list[Result]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _training(output: Path, runs: Sequence[str]) -> Result:
    """Return what training took: tokens that were computed, seconds of steps."""
    seconds, trained, steps = 0.0, 0, 0
    for run in runs:
        for line in _rows(output / run / "metrics.jsonl"):
            if "loss" in line:
                seconds, trained, steps = seconds + line["seconds"], trained + line["tokens"], steps + 1
    return {"steps": steps, "tokens_trained_on": trained, "seconds_of_steps": round(seconds, 1)}


def show(result: Result) -> None:
    """Print the table, then what differs from the stock model, then the checks."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    console.width = max(console.width, WIDTH)
    table = Table("", *(heading for *_, heading in COLUMNS), title="95 % intervals in brackets")
    for shown in table.columns:
        shown.no_wrap = True
    for name, figures in result["figures"].items():
        table.add_row(WORDS[name], *(cell(figures, column) for column, *_ in COLUMNS))
    console.print(table)
    for name, figures in result["figures"].items():
        for column, *_, heading in COLUMNS:
            if difference := figures.get(column, {}).get("against_stock"):
                console.print(f"{WORDS[name]}, {heading}: {difference['words']}")
    for line in checks(result["figures"]):
        console.print(line)


def checks(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for each check, with what every model has there."""
    lines = []
    for column, *_, heading in CHECKS:
        told = (f"{WORDS[name]} {cell(found, column)}" for name, found in figures.items() if column in found)
        lines.append(f"{heading}: {', '.join(told)}")
    return lines


def figures_of(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the figures of a kept result by way to answer and column."""
    figures: dict[str, dict[str, Any]] = {name: {} for name in WORDS}
    for figure in entry["figures"]:
        name, _, column = figure["name"].partition(": ")
        figures[name][column] = figure
    return figures


def markdown(entry: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of a kept result, as the README and the guide show them."""
    figures = figures_of(entry)
    head = [["", *(heading for *_, heading in COLUMNS)], ["---"] * (1 + len(COLUMNS))]
    body = [[WORDS[name], *(cell(found, column) for column, *_ in COLUMNS)] for name, found in figures.items()]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in [*head, *body]]


def cell(figures: Mapping[str, Any], column: str) -> str:
    """Return `46 % (42–50)`, or what stands for a figure that is the model's own."""
    if column not in figures:
        return "as without"
    value, low, high = (figures[column][key] for key in ("value", "low", "high"))
    if column not in ("texts", "general"):
        return f"{100 * value:.1f} % ({100 * low:.1f}–{100 * high:.1f})"
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def keep(result: Result, folder: Path, *, command: Sequence[str], saved: bool) -> None:
    """Write the figures as a benchmark's entry and the picture; `saved` ones below benchmarks/results and docs."""
    sys.path.append(str(TOP / "benchmarks"))
    from reporting import append, machine

    shares = [
        {"name": f"{name}: {column}", "unit": "share" if measure == "accuracy" else "", **values[column]}
        for name, values in result["figures"].items()
        for column, _, measure, _ in (*COLUMNS, *CHECKS)
        if column in values
    ]
    question = "What do retrieval, LoRA and full tuning gain on questions about the corpus, and what do they forget?"
    facts = {"training": result["training"], "seconds_of_this_call": result["seconds"], "command": " ".join(command)}
    entry = {"benchmark": "comparison", "question": question, "figures": shares, **facts, **machine()}
    append(folder / ("benchmarks/results" if saved else "") / "comparison.json", entry)
    draw(result, folder / ("docs" if saved else "") / "comparison.png")


def draw(result: Result, path: Path) -> None:
    """Draw one panel a column, a dot with its interval a row; the stock model's value is a line through all."""
    from matplotlib.figure import Figure

    names = list(result["figures"])
    picture = Figure(figsize=(11, 2.6), layout="constrained")
    axes = picture.subplots(1, len(COLUMNS), sharey=True)
    for axis, (column, _, measure, heading) in zip(axes, COLUMNS, strict=True):
        scale = 100 if measure == "accuracy" else 1
        for place, name in enumerate(names):
            own = column in result["figures"][name]
            figure = result["figures"][name if own else name.removesuffix("-retrieval")][column]
            value, low, high = (scale * figure[key] for key in ("value", "low", "high"))
            spread = [[value - low], [high - value]]
            axis.errorbar(value, place, xerr=spread, fmt="o", mfc="C0" if own else "white", color="C0", capsize=3)
        stock = scale * result["figures"]["stock"][column]["value"]
        axis.axvline(stock, color="0.8", zorder=0)
        if measure == "accuracy":
            axis.axvline(scale * CHANCE, color="0.8", linestyle=":", zorder=0)
        axis.set_title(f"{heading}{', %' if scale == 100 else ''}", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.margins(y=0.15)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    axes[0].set_yticks(range(len(names)), [WORDS[name] for name in names])
    axes[0].invert_yaxis()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=130)
