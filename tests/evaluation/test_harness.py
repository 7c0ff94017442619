"""lm-eval's tasks: figures equal those of its own Hugging Face model; what is wrong is said before any row."""

from __future__ import annotations

import logging
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.demo_parts import demo_parts
from tests.evaluation.benchmarking import COLOURS, QUESTIONS, Config, Plain, as_json, write_tasks
from tests.making import tiny_config, tiny_model, tiny_tokenizer
from velocity.errors import UserError
from velocity.evaluation.harness import _manager, load_tasks, run_benchmarks
from velocity.evaluation.lm import VelocityLM

LENGTH = 128  # shorter than the longest text: it takes several windows


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tasks(tmp_path_factory.mktemp("tasks")))


@pytest.fixture(scope="module")
def plain() -> Plain:
    tokenizer = tiny_tokenizer()
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return Plain(tiny_model(tiny_config(len(tokenizer), max_position_embeddings=LENGTH, **special)), tokenizer)


def ours(plain: Plain, config: Config) -> dict[str, Any]:
    lm = VelocityLM(plain.score, plain.complete, plain.tokenizer, LENGTH)
    found: dict[str, Any] = as_json(run_benchmarks(config, lm))
    return found


def theirs(plain: Plain, config: Config) -> dict[str, Any]:
    """What lm-eval says of the same model by its own means."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    own = HFLM(pretrained=plain.model, tokenizer=plain.tokenizer, device="cpu", batch_size=4)
    told = simple_evaluate(
        own, tasks=list(config.tasks), task_manager=_manager(config.folder), limit=config.limit,
        num_fewshot=config.fewshot, bootstrap_iters=0, apply_chat_template=config.chat,
        fewshot_as_multiturn=config.chat,
    )  # fmt: skip
    assert told is not None
    return told


def assert_alike(mine: dict[str, Any], told: dict[str, Any]) -> None:
    """Every figure that lm-eval has is ours, to 1e-4 of itself or better."""
    for task, result in told["results"].items():
        if task not in mine:
            continue
        known = {key.partition(",")[0]: value for key, value in result.items() if "," in key and "_stderr" not in key}
        found = {name: one["value"] for name, one in mine[task]["figures"]["measures"].items()}
        assert found == pytest.approx(known, rel=1e-4), task


def test_figures_are_those_of_lm_evals_own_model(tasks: str, plain: Plain):
    config = Config(["both", "colours_bare", "likely", "said"], tasks)
    found, told = ours(plain, config), theirs(plain, config)
    assert_alike(found, told)
    said = [sample["filtered_resps"] for sample in told["samples"]["said"]]
    assert [row["responses"] for row in found["said"]["rows"]] == said


def test_they_are_so_with_examples_a_limit_and_the_chat_template(tasks: str, plain: Plain):
    config = Config(["colours", "said"], tasks, limit=5, fewshot=2, chat=True)
    found = ours(plain, config)
    assert_alike(found, theirs(plain, config))
    assert found["colours"]["figures"]["rows"] == 5 and found["colours"]["figures"]["fewshot"] == 2
    assert found["colours"]["rows"][0]["prompt"].count("Answer:") == 3  # two examples and the row
    assert "<|im_start|>" in found["colours"]["rows"][0]["prompt"]


def test_figures_come_with_intervals_version_and_rows(tasks: str, plain: Plain):
    figures = ours(plain, Config(["colours", "likely"], tasks))
    colours, likely = (figures[name]["figures"] for name in ("colours", "likely"))
    assert (colours["version"], colours["fewshot"], colours["rows"]) == (2.0, 0, len(QUESTIONS))
    for one in (*colours["measures"].values(), *likely["measures"].values()):
        assert one["low"] < one["value"] < one["high"]
    assert colours["measures"]["acc"]["better"] == "higher"
    assert {one["better"] for one in likely["measures"].values()} == {"lower"}


def test_each_row_tells_what_was_asked_and_what_each_measure_makes_of_it(tasks: str, plain: Plain):
    rows = ours(plain, Config(["colours"], tasks))["colours"]["rows"]
    assert [row["row"] for row in rows] == list(range(len(QUESTIONS))) and len({row["id"] for row in rows}) == len(rows)
    assert rows[1]["choices"] == [f" {colour}" for colour in COLOURS[:4]] and rows[1]["target"] == 1
    assert len(rows[1]["responses"]) == 4 and set(rows[1]["scores"]) == {"acc", "acc_norm"}


def test_a_group_is_the_mean_of_its_tasks_within_a_narrower_interval(tasks: str, plain: Plain):
    """Both have twelve rows: the mean of two independent values has 1 / sqrt(2) of their standard errors."""
    figures = ours(plain, Config(["both"], tasks))["both"]["figures"]
    parts = [part["measures"]["acc"] for part in figures["tasks"].values()]
    whole = figures["measures"]["acc"]
    assert whole["value"] == pytest.approx(sum(part["value"] for part in parts) / 2)
    width = max(part["high"] - part["low"] for part in parts)
    assert 0.6 < (whole["high"] - whole["low"]) / width < 0.8
    assert figures["rows"] == 24 and len(figures["tasks"]) == 2


def test_an_unknown_task_brings_the_nearest_names(tasks: str):
    with pytest.raises(UserError, match=r"no benchmark colour\n.*\n.*did you mean colours"):
        load_tasks("colour", Config(["colour"], tasks))


def test_a_folder_without_task_files_is_named(tmp_path: Path):
    with pytest.raises(UserError, match="no task file"):
        load_tasks("colours", Config(["colours"], str(tmp_path)))


def test_a_task_whose_data_is_not_there_is_one_message(tasks: str, tmp_path: Path):
    text = (Path(tasks) / "colours.yaml").read_text().replace("questions.jsonl", "gone.jsonl")
    (tmp_path / "colours.yaml").write_text(text)
    with pytest.raises(UserError, match="benchmark colours does not load: .*gone.jsonl") as caught:
        load_tasks("colours", Config(["colours"], str(tmp_path)))
    assert len(str(caught.value).splitlines()) <= 3


def test_a_task_that_runs_what_a_model_writes_is_refused(tasks: str, tmp_path: Path):
    (tmp_path / "code.yaml").write_text(
        (Path(tasks) / "said.yaml").read_text().replace("task: said", "task: code") + "unsafe_code: true\n"
    )
    with pytest.raises(UserError, match="runs code that a model writes"):
        load_tasks("code", Config(["code"], str(tmp_path)))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(UserError, match=r"need lm-eval\n.*\n.*ProfoundVelocity\[evaluation\]"):
        load_tasks("arc_easy", Config(["arc_easy"], "a folder that no other test names"))


def test_nothing_is_printed_and_no_generator_is_moved(
    tasks: str, plain: Plain, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    with caplog.at_level(logging.WARNING):
        ours(plain, Config(["colours", "said"], tasks, limit=2, fewshot=1))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # type: ignore[index]
    out, err = capfd.readouterr()
    assert not out and not err and not [record for record in caplog.records if record.name.startswith("lm_eval")]


@pytest.mark.slow
def test_a_real_models_figures_are_those_of_lm_evals_own_model(tasks: str, tmp_path_factory: pytest.TempPathFactory):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = str(demo_parts(tmp_path_factory) / "base")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    real = Plain(model, AutoTokenizer.from_pretrained(folder))
    config = Config(["colours", "colours_last", "likely", "said"], tasks, limit=6)
    lm = VelocityLM(real.score, real.complete, real.tokenizer, model.config.max_position_embeddings)
    assert_alike(as_json(run_benchmarks(config, lm)), theirs(real, config))
