"""Scores by name."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from velocity.config.evaluate import Score
from velocity.errors import UserError
from velocity.evaluation.scores.build import build_scores


def test_every_metric_of_a_job_is_built_under_its_name_beside_pattern_and_function(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def kind(completion, reference, row):\n    return completion[0] == reference[0]\n"
    )
    scores = build_scores(get_args(Score), r"\d+", f"{tmp_path / 'mine.py'}:kind")
    assert list(scores) == [*get_args(Score), "pattern", "kind"]
    assert {name: score("bug 7", "bug 7", {}) for name, score in scores.items()} == dict.fromkeys(
        scores, pytest.approx(1.0)
    )


def test_a_function_named_as_a_metric_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def f1(completion, reference, row):\n    return 1\n")
    with pytest.raises(UserError, match="two scores are named f1"):
        build_scores(["f1"], None, f"{tmp_path / 'mine.py'}:f1")
