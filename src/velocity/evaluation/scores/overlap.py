"""Scores of longer answers by the libraries whose figures papers have: ROUGE-L by rouge-score, chrF by sacrebleu."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from velocity.errors import UserError
from velocity.evaluation.scores.score import Reference, Score, best, known

EXTRA = "ProfoundVelocity[evaluation]"


def rouge_l() -> Score:
    """The F-measure of the longest common subsequence of words (Lin 2004); words are runs of a-z and digits."""
    scorer = _library("rouge_score.rouge_scorer", "rouge_l").RougeScorer(["rougeL"], use_stemmer=False)

    def score(completion: str, reference: str) -> float:
        return float(scorer.score(reference, completion)["rougeL"].fmeasure)

    return best(score)


def chrf() -> Score:
    """chrF2 of character sequences of up to six (Popović 2015), as sacrebleu has it, in hundredths."""
    metric = _library("sacrebleu.metrics", "chrf").CHRF()

    def score(completion: str, reference: Reference, row: Mapping[str, Any], /) -> float:
        return float(metric.sentence_score(completion, list(known(reference))).score) / 100

    return score


def _library(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.partition(".")[0].replace("_", "-")
        raise UserError(f"metrics: {name} needs {package}", fix=f"pip install '{EXTRA}'") from None
