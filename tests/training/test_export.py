"""A run's model leaves as a plain folder: copied, or merged where it is an adapter; and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.making import tiny_model_folder, tiny_tokenizer, write_job, write_jsonl
from tests.models.test_adapters import adapted, disturb, trained_weights
from tests.running import ragged_rows
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.config.sections import ModelConfig
from velocity.errors import UserError
from velocity.models.adapters import save_adapter
from velocity.models.locate import is_adapter, locate
from velocity.training.export import export_model, merge_ahead


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder without a model yet."""
    tiny_model_folder(tmp_path / "model")
    write_jsonl(tmp_path / "train.jsonl", ragged_rows(4))
    loaded = load_job(write_job(tmp_path / "job.yaml"))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "job.yaml").write_text(render(loaded))
    return folder


def give_adapter(run: Path) -> None:
    model, adapter = adapted(run.parent / "model")
    disturb(model)
    save_adapter(adapter, trained_weights(model), tiny_tokenizer(), run / "model", "a card")


def test_a_model_is_copied(run: Path, tmp_path: Path) -> None:
    tiny_model_folder(run / "model", seed=3)
    export_model(run, tmp_path / "out")
    names = {path.name: path.read_bytes() for path in (run / "model").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == names


def test_an_adapter_is_merged(run: Path, tmp_path: Path) -> None:
    give_adapter(run)
    export_model(run, tmp_path / "out")
    assert not is_adapter(tmp_path / "out")
    assert locate(ModelConfig(path=str(tmp_path / "out"))) == tmp_path / "out"


def test_an_adapter_that_is_no_run_is_merged_as_well(run: Path, tmp_path: Path) -> None:
    give_adapter(run)
    (run / "model").rename(tmp_path / "adapter")
    export_model(tmp_path / "adapter", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_run_without_a_model_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finished"):
        export_model(run, tmp_path / "out")


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder nor an adapter"):
        export_model(tiny_model_folder(tmp_path / "model"), tmp_path / "out")


def test_a_folder_that_is_taken_is_refused_and_left_as_it_is(run: Path, tmp_path: Path) -> None:
    tiny_model_folder(run / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty"):
        export_model(run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_a_job_that_starts_from_an_adapters_run_finds_it_merged(run: Path) -> None:
    give_adapter(run)
    with pytest.raises(UserError, match="an adapter, not a model"):
        locate(ModelConfig(path=str(run)))
    merge_ahead(str(run))
    assert locate(ModelConfig(path=str(run))) == run / "merged"
    made = (run / "merged" / "model.safetensors").stat().st_mtime_ns
    merge_ahead(str(run))
    assert (run / "merged" / "model.safetensors").stat().st_mtime_ns == made, "once is enough"


def test_a_model_that_is_no_adapters_run_is_left_alone(run: Path, tmp_path: Path) -> None:
    tiny_model_folder(run / "model")
    for model in (str(run), str(tmp_path / "model"), "org/some-model"):
        merge_ahead(model)
    assert not (run / "merged").exists()
