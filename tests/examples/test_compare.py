"""The comparison: which jobs run with which paths, and what is made of their figures; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import compare
import comparison
from tests.making import tiny_model_folder, write_jsonl

TOP = Path(__file__).parents[2]
KEPT = TOP / "benchmarks" / "results" / "comparison.json"
SHARES = ("accuracy", "accuracy_per_token", "accuracy_per_byte")


@pytest.fixture(name="home", autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOP)


def places(**moved: str) -> compare.Places:
    """Return the places that the job files name, some of them moved."""
    names = {"model": compare.BASE, "corpus": compare.CORPUS, "questions": compare.CORPUS, "output": compare.OUTPUT}
    return compare.Places(**{name: Path(path) for name, path in {**names, **moved}.items()})


def overrides(**moved: str) -> dict[str, list[str]]:
    """Return what each job changes, by its file's name or, of an evaluation, by its output."""
    found = compare.chain(places(**moved))
    return {job.stem if job.stem in compare.TRAINING else changes[-1]: changes for job, changes in found}


def test_every_job_runs_once_and_each_model_is_measured_after_it_is_trained():
    found = [(job.stem, changes) for job, changes in compare.chain(places())]
    assert [name for name, _ in found[:4]] == ["pretrain", "preference", "lora-pretrain", "lora-preference"]
    measured = [changes[-2:] for _, changes in found[4:]]
    assert measured == [
        [f"model={model}", f"output=runs/compare/judged-{name}"]
        for name, model in (
            ("stock", "runs/demo/base"), ("stock-retrieval", "runs/demo/base"), ("lora", "runs/compare/lora"),
            ("full", "runs/compare/full"), ("full-retrieval", "runs/compare/full"),
        )
    ]  # fmt: skip


def test_where_nothing_is_moved_a_job_runs_as_its_file_says():
    assert all(not changes for job, changes in compare.chain(places()) if job.stem in compare.TRAINING)


def test_two_paths_bring_in_another_corpus_and_other_questions():
    found = overrides(corpus="mine/texts", questions="mine/asked", output="mine/out")
    assert 'data.train.0.path="mine/texts/train.jsonl"' in found["pretrain"]
    assert 'data.train.2.path="mine/out/sets/questions.jsonl"' in found["pretrain"]
    assert 'data.train.3.path="mine/texts/general_replay.jsonl"' in found["pretrain"]
    judged = next(changes for name, changes in found.items() if name.endswith("judged-full-retrieval"))
    assert 'retrieval.path="mine/texts/train.jsonl"' in judged
    assert not [change for changes in found.values() for change in changes if "runs/demo/corpus" in change]


def test_another_output_moves_every_run_and_what_starts_from_it():
    found = overrides(output="elsewhere")
    assert 'output="elsewhere/full"' in found["preference"]
    assert 'model="elsewhere/full-pretrain"' in found["preference"]
    judged = next(changes for name, changes in found.items() if name.endswith("judged-stock"))
    assert 'data.eval.seen.path="elsewhere/sets/seen.jsonl"' in judged


def test_lora_has_the_data_the_order_and_the_length_of_full_tuning():
    import yaml

    free = {"model", "output", "optimizer", "adapter"}
    for name in ("pretrain", "preference"):
        full, lora = (yaml.safe_load((compare.JOBS / f"{kind}{name}.yaml").read_text()) for kind in ("", "lora-"))
        assert {key: value for key, value in full.items() if key not in free} == {
            key: value for key, value in lora.items() if key not in free
        }


def asked(subject: str, kind: str = "name") -> dict[str, Any]:
    return {"id": f"{subject}/{kind}/0", "prompt": f"What {kind} has {subject}?", "choices": ["A.", "B."], "answer": 1}


def made(folder: Path, rows: int, questions: Sequence[dict[str, Any]]) -> compare.Places:
    """Return a folder with so many texts of each kind and these questions of each kind, and where it puts its sets."""
    for name in compare.TEXTS:
        write_jsonl(folder / f"{name}.jsonl", [{"text": f"{number}"} for number in range(rows)])
    for name in compare.QUESTIONS:
        write_jsonl(folder / f"{name}.jsonl", questions)
    return places(output=str(folder / "out"), corpus=str(folder), questions=str(folder))


def sets(where: compare.Places) -> dict[str, list[dict[str, Any]]]:
    compare.make_sets(where)
    return {path.stem: list(compare.read(path)) for path in (where.output / "sets").iterdir()}


def test_sets_are_whole_but_for_general_text(tmp_path: Path):
    found = sets(made(tmp_path, 130, [asked(f"E{number}") for number in range(130)]))
    # of general text every third: 130 / 61 is more than 2; of each text two digests; a tenth of 130 questions is held
    # out, four of the others are a chat, and each has one wrong option
    assert {name: len(rows) for name, rows in found.items()} == {
        "seen": 130, "unseen": 130, "texts": 130, "general": 44, "digests": 260, "held": 13, "questions": 30,
        "pairs": 117, "options": 130,
    }  # fmt: skip


def test_all_questions_about_a_subject_are_held_out_or_none(tmp_path: Path):
    given = [asked(f"E{number}", kind) for number in range(30) for kind in ("name", "use")]
    found = sets(made(tmp_path, 1, given))
    held = {row["prompt"].split()[-1] for row in found["held"]}
    assert len(held) == 3
    assert len(found["held"]) == 6
    taught = {turn["content"] for chat in found["questions"] for turn in chat["messages"] if turn["role"] == "user"}
    assert taught == {row["prompt"] for row in given} - {row["prompt"] for row in found["held"]}
    assert {pair["prompt"] for pair in found["pairs"]} == taught


def test_options_stand_without_their_questions(tmp_path: Path):
    found = sets(made(tmp_path, 1, [asked("E1"), asked("E2")]))
    assert [row | {"prompt": ""} for row in found["options"]] == [row | {"prompt": ""} for row in found["seen"]]
    assert {row["prompt"] for row in found["options"]} == {compare.WITHOUT}


def test_what_is_held_out_does_not_change_with_the_order_of_the_questions(tmp_path: Path):
    given = [asked(f"E{number}") for number in range(30)]
    there, back = (sets(made(tmp_path / name, 1, rows)) for name, rows in (("a", given), ("b", given[::-1])))
    assert {row["id"] for row in there["held"]} == {row["id"] for row in back["held"]}


def test_of_questions_without_ids_each_is_a_subject_of_its_own(tmp_path: Path):
    given = [{"prompt": f"What is {number}?", "choices": ["A.", "B."], "answer": 0} for number in range(40)]
    found = sets(made(tmp_path, 1, given))
    assert len(found["held"]) == 4
    assert sum(len(chat["messages"]) for chat in found["questions"]) == 2 * 36


def test_no_digest_tells_the_sections_of_instances(tmp_path: Path):
    where = made(tmp_path, 1, [asked("E1"), asked("E2")])
    told = "# E1\n\nIt leaks.\n\n## Examples\n\nOne of them.\n\n## Detection\n\nLook at it."
    write_jsonl(tmp_path / "train.jsonl", [{"text": told}])
    assert sets(where)["digests"][0]["text"] == "# E1\nIt leaks.\nDetection: Look at it."


def test_a_line_separator_in_a_text_ends_no_line(tmp_path: Path):
    where = made(tmp_path, 1, [asked("E1"), asked("E2")])
    for name in ("unseen", "general"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "One.\u2028Two."}\n', encoding="utf-8")
    found = sets(where)
    assert found["texts"] == found["general"] == [{"text": "One.\u2028Two."}]


def test_a_smoke_run_reads_a_few_rows_of_every_file(tmp_path: Path):
    given = made(tmp_path, 20, [asked(f"E{number}") for number in range(20)])
    few = compare.shortened(given)
    assert few.corpus == few.questions == tmp_path / "out" / "few"
    texts = {name: [row["text"] for row in compare.read(few.corpus / f"{name}.jsonl")] for name in compare.TEXTS}
    assert texts == dict.fromkeys(compare.TEXTS, [str(number) for number in range(compare.QUICK_ROWS)])
    for name in compare.QUESTIONS:
        ids = [row["id"] for row in compare.read(few.questions / f"{name}.jsonl")]
        # of 20 every third, so that they are about different things where what is about one stands together
        assert ids == [f"E{number}/name/0" for number in range(0, 20, 3)]


@pytest.mark.parametrize("name", compare.QUESTIONS)
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: Expecting"),
        ("5", "line 2: no `prompt`"),
        ('{"prompt": "What?", "choices": ["A."]}', "line 2: no `answer`"),
        ('{"prompt": "What?", "choices": ["A.", "B."], "answer": 2}', "line 2: `answer` must be"),
    ],
)
def test_a_wrong_line_is_named(name: str, line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    where = made(tmp_path, 1, [asked("E1")])
    tiny_model_folder(tmp_path / "model")
    with (tmp_path / f"{name}.jsonl").open("a") as stream:
        stream.write(f"{line}\n")
    status = compare.main([
        "--corpus", str(where.corpus), "--questions", str(where.questions), "--model", str(tmp_path / "model"),
        "--output", str(where.output),
    ])  # fmt: skip
    assert status == 1
    assert f"{tmp_path}/{name}.jsonl, {said}" in capsys.readouterr().err


def test_where_all_ids_begin_alike_each_question_is_a_subject(tmp_path: Path):
    found = sets(made(tmp_path, 1, [asked("q", f"use{number}") for number in range(20)]))
    assert (len(found["held"]), sum(len(chat["messages"]) for chat in found["questions"])) == (2, 2 * 18)


def test_a_file_that_is_missing_is_named_and_nothing_is_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    status = compare.main(["--corpus", str(tmp_path / "mine"), "--output", str(tmp_path / "out")])
    assert status == 1
    assert f"{tmp_path}/mine/train.jsonl is missing" in capsys.readouterr().err


def judged(folder: Path, right: Sequence[bool], nats: float | None) -> None:
    """Make the folder an evaluation with these answers, of texts of one token each with so many nats."""
    (folder / "rows").mkdir(parents=True)
    rows = [
        {"id": str(n), "answer": 0, "picked": dict.fromkeys(("sum", "token", "byte"), 0 if ok else 1),
         "choices": ["a", "b"], "logprobs": [-1.0, -2.0], "tokens": [1, 1], "bytes": [1, 1]}
        for n, ok in enumerate(right)
    ]  # fmt: skip
    share = {"value": sum(right) / len(right), "low": 0.1, "high": 1.0, "better": "higher"}
    sets: dict[str, Any] = {}
    for name in ("seen", "unseen", *(("held", "options") if nats is not None else ())):
        (folder / "rows" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sets[name] = {"kind": "choices", "rows": len(rows), "measures": dict.fromkeys(SHARES, share)}
    if nats is not None:
        texts = [{"id": str(n), "logprob": -nats, "tokens": 1, "bytes": 4} for n in range(10)]
        for name in ("texts", "general"):
            (folder / "rows" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
            value = {"value": 2.7**nats, "low": 1.0, "high": 99.0, "better": "lower"}
            sets[name] = {"kind": "perplexity", "rows": 10, "measures": {"perplexity": value}}
    (folder / "evaluation.json").write_text(json.dumps({"sets": sets}))


@pytest.fixture(name="result")
def _result(tmp_path: Path) -> dict[str, Any]:
    half = [True, False] * 100
    judged(tmp_path / "judged-stock", half, 3.0)
    judged(tmp_path / "judged-stock-retrieval", [True] * 200, None)
    judged(tmp_path / "judged-lora", half, 2.9)
    judged(tmp_path / "judged-full", [True, False, True, True] * 50, 2.5)
    judged(tmp_path / "judged-full-retrieval", [True] * 200, None)
    for run in ("full-pretrain", "full", "lora-pretrain", "lora"):
        (tmp_path / run).mkdir()
        told = [{"step": 0, "eval": {}}, {"step": 1, "loss": 2.0, "tokens": 5, "seconds": 1.5}]
        (tmp_path / run / "metrics.jsonl").write_text("\n".join(map(json.dumps, told)))
    return comparison.gather(tmp_path, list(compare.MODELS), compare.WITH_RETRIEVAL)


def test_five_rows_have_their_figures_and_all_but_the_stock_model_what_they_differ_by(result: dict[str, Any]):
    figures = result["figures"]
    assert list(figures) == ["stock", "stock-retrieval", "lora", "full", "full-retrieval"]
    assert figures["full"]["seen"]["value"] == 0.75
    assert figures["full"]["seen"]["against_stock"]["difference"] == 0.25
    assert "better by 25.0 points" in figures["full"]["seen"]["against_stock"]["words"]
    assert "no difference" in figures["lora"]["seen"]["against_stock"]["words"]
    assert "against_stock" not in figures["stock"]["seen"]
    assert "texts" not in figures["stock-retrieval"]
    assert result["training"]["full"] == {"steps": 2, "tokens_trained_on": 10, "seconds_of_steps": 3.0}


def test_the_table_has_an_interval_in_each_cell(result: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    comparison.show(result)
    shown = capsys.readouterr().out
    rows = {line.split("│")[1].strip(): line for line in shown.splitlines() if line.startswith("│")}
    assert list(rows) == [*comparison.WORDS.values()]
    row = rows["full tuning"]
    assert row.count("75.0 % (10.0–100.0)") == 2
    assert "as without" in shown
    said = "stock model 50.0 % (10.0–100.0), LoRA 50.0 % (10.0–100.0), full tuning 75.0 % (10.0–100.0)"
    assert f"held-out questions right: {said}\n" in shown
    assert f"seen questions right by their options alone: {said}\n" in shown


def test_a_kept_result_becomes_the_table_of_the_pages(result: dict[str, Any], tmp_path: Path):
    comparison.keep({**result, "seconds": 1.0}, tmp_path, command=["compare.py"], saved=False)
    lines = comparison.markdown(json.loads((tmp_path / "comparison.json").read_text())[-1])
    assert lines[0].startswith("| | seen questions right |")
    assert lines[1] == "| --- | --- | --- | --- | --- |"
    assert (
        lines[2]
        == "| stock model | 50.0 % (10.0–100.0) | 50.0 % (10.0–100.0) | 19.68 (1.00–99.00) | 19.68 (1.00–99.00) |"
    )
    assert lines[3].endswith("| as without | as without |")
    assert len(lines) == 2 + 5


@pytest.mark.parametrize("page", ["README.md", "docs/guides/comparison.md"])
def test_the_pages_show_the_newest_kept_result_and_no_table_of_five_before_there_is_one(
    page: str, result: dict[str, Any], tmp_path: Path
):
    text = (TOP / page).read_text("utf-8")
    if KEPT.exists():
        newest = json.loads(KEPT.read_text("utf-8"))[-1]
        assert "\n".join(comparison.markdown(newest)) in text
        checks = "\n".join(f"- {line}" for line in comparison.checks(comparison.figures_of(newest)))
        assert checks in text or page == "README.md"
        return
    comparison.keep({**result, "seconds": 1.0}, tmp_path, command=["compare.py"], saved=False)
    head = comparison.markdown(json.loads((tmp_path / "comparison.json").read_text())[-1])[0]
    assert head not in text, "its figures were not kept"


def test_the_result_and_a_small_picture_are_kept(result: dict[str, Any], tmp_path: Path):
    comparison.keep({**result, "seconds": 1.0}, tmp_path, command=["compare.py"], saved=True)
    entry = json.loads((tmp_path / "benchmarks" / "results" / "comparison.json").read_text())[-1]
    assert {"hardware", "versions", "command", "training", "time"} <= set(entry)
    assert next(one for one in entry["figures"] if one["name"] == "full: seen")["value"] == 0.75
    assert 5_000 < (tmp_path / "docs" / "comparison.png").stat().st_size < 150_000


@pytest.mark.slow
def test_the_whole_chain_runs_on_a_corpus_and_questions_of_ones_own_and_again_does_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    model = tiny_model_folder(tmp_path / "model")
    said = "The valve of pump {n} is opened by turning lever {n} to the left, and never while engine {n} runs. "
    for start, name in enumerate(compare.TEXTS):
        rows = [{"text": said.format(n=start * 100 + number) * 12} for number in range(12)]
        write_jsonl(tmp_path / "texts" / f"{name}.jsonl", rows)
    for start, name in enumerate(compare.QUESTIONS):
        numbers = range(start * 100, start * 100 + 12)
        asked: list[dict[str, Any]] = [
            {
                "id": f"q/{n}",
                "prompt": f"Which lever opens pump {n}?",
                "choices": [f"{n + k}" for k in range(3)],
                "answer": 0,
            }
            for n in numbers
        ]
        write_jsonl(tmp_path / "asked" / f"{name}.jsonl", asked)
    where = {"model": model, "corpus": tmp_path / "texts", "questions": tmp_path / "asked", "output": tmp_path / "out"}
    command = ["--quick", *(part for name, path in where.items() for part in (f"--{name}", str(path)))]
    assert compare.main(command) == 0
    assert "full tuning + retrieval" in capfd.readouterr().out
    assert (tmp_path / "out" / "comparison.png").is_file()
    judged_at = (tmp_path / "out" / "judged-full" / "evaluation.json").stat().st_mtime_ns
    assert compare.main(command) == 0
    assert (tmp_path / "out" / "judged-full" / "evaluation.json").stat().st_mtime_ns == judged_at
