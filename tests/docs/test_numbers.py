"""The numbers of the README are those that lie in benchmarks/results, and none is left to fill in."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.docs.pages import ROOT, pages, read

# a row of the README begins with this; the benchmark and the figure that it quotes
ROWS = {
    "tokens a second, against TRL's SFTTrainer padded": ("train_throughput", "fp32 against TRL padded"),
    "against TRL packed": ("train_throughput", "fp32 against TRL packed"),
    "against a bare PyTorch loop": ("train_throughput", "fp32 against a bare loop"),
    "with the precision that `strategy: auto` picks": ("train_throughput", "auto against TRL padded in fp32"),
    "preference pairs a second (DPO), against TRL's": ("pair_throughput", "fp32 against TRL as it comes"),
    "against TRL with its reference": ("pair_throughput", "fp32 against TRL with its reference computed before"),
    "peak memory of that": ("pair_throughput", "peak memory, fp32 against TRL as it comes"),
    "prompts a second completed, against transformers' generate": (
        "generate_throughput",
        "rows against generate at its best batch size",
    ),
    "against a loop without a cache": ("generate_throughput", "rows against a loop without a cache"),
    "weights of a model streamed from a disk": (
        "stream_memory",
        "weights against own memory, weights on the disk, one rank",
    ),
    "chats a second tokenised": ("tokenise_throughput", "both with their defaults"),
    "peak memory of whole logits": ("loss_memory", "whole logits against the chunked head"),
    "peak memory of tokenising": ("data_memory", "tenfold corpus against one"),
    "seconds of `velocity --help`": ("startup", "velocity --help"),
    "time of a whole small job on two ranks": ("startup", "a job of two ranks against ranks that only meet"),
}


def measured(benchmark: str, name: str) -> float:
    """The newest value of a figure."""
    entries: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / f"{benchmark}.json").read_text())
    return next(float(figure["value"]) for figure in entries[-1]["figures"] if figure["name"] == name)


@pytest.mark.parametrize("row", ROWS)
def test_a_number_of_the_readme_was_measured(row: str):
    found = re.search(rf"^\| {re.escape(row)}[^|]*\| ([\d.]+)", read("README.md"), re.MULTILINE)
    assert found, f"README.md has no row '{row}'"
    digits = len(found[1].partition(".")[2])
    assert float(found[1]) == round(measured(*ROWS[row]), digits)


@pytest.mark.parametrize("page", pages())
def test_no_number_is_left_to_fill_in(page: str):
    assert "NUMBER_" not in read(page)
