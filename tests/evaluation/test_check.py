"""What `velocity check` says of an evaluate job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluating import evaluation_folder, planned, write_evaluate_job
from velocity.evaluation.check import check_job, print_check


def test_every_set_is_described_with_its_first_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = evaluation_folder(tmp_path, 6)
    found = check_job(planned(write_evaluate_job(folder / "job.yaml")), folder / "model", lambda text: None)
    assert {name: (one.kind, one.rows, one.options) for name, one in found.sets.items()} == {
        "texts": ("perplexity", 3, 1), "choices": ("choices", 6, 2), "pairs": ("preference", 6, 2),
        "said": ("answers", 6, 0),
    }  # fmt: skip
    assert found.sets["choices"].sample.endswith("assistant\n")
    assert found.describe()["sets"]["pairs"]["rows"] == 6
    print_check(found)
    told = capsys.readouterr().out
    assert "The first row of choices, as the model sees it" in told and "engine" in told
