"""A job that starts from an earlier job's output is checked with the model that the earlier one starts from."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.making import generate_data, tiny_model_folder, write_job
from velocity.config.job import Job
from velocity.config.load import load_job
from velocity.config.resolved import render
from velocity.errors import UserError
from velocity.runs.chain import model_ahead


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    tiny_model_folder(folder / "model")
    return folder


def job(folder: Path, name: str, model: Path, **sections: object) -> Job:
    return load_job(write_job(folder / f"{name}.yaml", model=str(model), output=str(folder / name), **sections)).job


def test_the_model_of_a_chain_is_that_of_its_first_job(folder: Path, tmp_path: Path):
    first = job(tmp_path, "first", folder / "model")
    second = job(tmp_path, "second", tmp_path / "first")
    third = job(tmp_path, "third", tmp_path / "second")
    assert model_ahead(third, [first, second], weights=True) == (third, folder / "model")


def test_a_template_that_an_earlier_job_sets_is_saved_with_its_model_and_so_taken_over(folder: Path, tmp_path: Path):
    first = job(tmp_path, "first", folder / "model", data={"chat_template": "a.jinja"})
    second = job(tmp_path, "second", tmp_path / "first")
    own = job(tmp_path, "own", tmp_path / "first", data={"chat_template": "b.jinja"})
    assert model_ahead(second, [first], weights=True)[0].data.chat_template == "a.jinja"
    assert model_ahead(own, [first], weights=True)[0].data.chat_template == "b.jinja"


def test_an_output_that_is_there_is_taken_as_it_is(folder: Path, tmp_path: Path):
    first = job(tmp_path, "first", folder / "model", data={"chat_template": "a.jinja"})
    second = job(tmp_path, "second", tmp_path / "first" / "model")
    tiny_model_folder(tmp_path / "first" / "model", seed=1)
    assert model_ahead(second, [first], weights=True) == (second, tmp_path / "first" / "model")


def test_a_job_that_comes_before_its_model_is_refused(folder: Path, tmp_path: Path):
    first = job(tmp_path, "first", folder / "model")
    second = job(tmp_path, "second", tmp_path / "first")
    with pytest.raises(UserError, match="no such model folder"):
        model_ahead(second, [], weights=True)
    assert model_ahead(first, [second], weights=True)[1] == folder / "model"


def test_a_run_whose_adapter_is_not_merged_yet_is_looked_at_as_its_own_model(folder: Path, tmp_path: Path):
    loaded = load_job(write_job(tmp_path / "lora.yaml", model=str(folder / "model"), output=str(tmp_path / "lora"),
                                adapter={}, data={"chat_template": "a.jinja"}))  # fmt: skip
    (tmp_path / "lora" / "model").mkdir(parents=True)
    (tmp_path / "lora" / "job.yaml").write_text(render(loaded))
    (tmp_path / "lora" / "model" / "adapter_config.json").write_text("{}")
    found, where = model_ahead(job(tmp_path, "next", tmp_path / "lora"), [], weights=False)
    assert where == folder / "model"
    assert found.data.chat_template == "a.jinja"
    assert not (tmp_path / "lora" / "merged").exists(), "a look changes nothing"


def test_a_generate_job_is_looked_at_with_the_model_and_the_template_of_the_job_that_tunes_it(
    folder: Path, tmp_path: Path
):
    first = job(tmp_path, "first", folder / "model", data={"chat_template": "a.jinja"})
    asked = {**generate_data(tmp_path), "model": str(tmp_path / "first"), "output": str(tmp_path / "answers")}
    (tmp_path / "answers.yaml").write_text(yaml.safe_dump(asked))
    found, where = model_ahead(load_job(tmp_path / "answers.yaml").job, [first], weights=True)
    assert (where, found.data.chat_template, found.task) == (folder / "model", "a.jinja", "generate")
