"""The reference's scores: computed once, kept under all that they depend on, and refused where that is another.

Shape letters: N sequences of a corpus, P pairs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import Tensor

from tests.making import tiny_model_folder, write_jsonl
from tests.pool import Pool
from tests.running import WORDS, built_on, loader_of, make_job, plain_engine
from velocity.batch import Batch
from velocity.data.corpus import Corpus
from velocity.data.loader import Share, TrainLoader
from velocity.data.pack import Indices
from velocity.distributed.comm import Ranks
from velocity.distributed.mesh import build_mesh
from velocity.errors import InterruptedRun, UserError
from velocity.training.build import build_reference
from velocity.training.reference import ReferenceScorer, ScoreCache, score_two

FACTS = {"model": "weights-1", "precision": "fp32", "attention": "auto"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("reference")
    tiny_model_folder(made / "model")
    rows = [{"prompt": WORDS[i], "chosen": " ".join(WORDS[: i + 1]), "rejected": " ".join(WORDS[i:])} for i in range(9)]
    write_jsonl(made / "train.jsonl", rows)
    return made


def loader(folder: Path, **changes: Any) -> TrainLoader:
    return loader_of(make_job(folder, {"task": "preference", **changes}), Ranks())


class Counting:
    """A policy that counts how often it is asked."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def __call__(self, batch: Batch) -> Tensor:
        self.calls += 1
        logps_BS: Tensor = self.inner(batch)
        return logps_BS


def scorer_of(folder: Path, cache: Path, facts: dict[str, str] = FACTS, **changes: Any) -> ReferenceScorer:
    job = make_job(folder, {"task": "preference", **changes})
    engine = plain_engine(job)
    return ReferenceScorer(
        policy=Counting(engine), engine=engine, layout=loader(folder, **changes).layout, share=Share(micro=2),
        capacity=job.row_tokens, cache=ScoreCache(cache, facts, first=True), stopping=lambda: False,
    )  # fmt: skip


def add_all(scorer: ReferenceScorer, corpus: Corpus) -> None:
    scorer.add_to(corpus, everything(corpus))


def everything(corpus: Corpus) -> Indices:
    return np.arange(len(corpus.lengths))


def calls(scorer: ReferenceScorer) -> int:
    assert isinstance(scorer.policy, Counting)
    return scorer.policy.calls


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_every_score_is_that_of_its_own_record(folder: Path, tmp_path: Path, kind: str) -> None:
    corpus = loader(folder, preference={"kind": kind}).corpus
    scorer = scorer_of(folder, tmp_path, preference={"kind": kind})
    add_all(scorer, corpus)
    assert corpus.reference_N2 is not None
    for index in range(len(corpus.lengths)):  # one by one, without packing
        batch = scorer.layout.collate(corpus, [np.array([index])])
        with torch.no_grad():
            expected = score_two(scorer.engine, batch)[0]
        np.testing.assert_allclose(corpus.reference_N2[index], expected.numpy(), rtol=1e-5, atol=1e-4)


def test_a_second_run_finds_the_scores_and_scores_nothing(folder: Path, tmp_path: Path) -> None:
    one, other = loader(folder).corpus, loader(folder).corpus
    add_all(scorer_of(folder, tmp_path), one)
    again = scorer_of(folder, tmp_path, preference={"kind": "dpo", "beta": 0.5, "loss": "ipo"})
    add_all(again, other)
    assert calls(again) == 0, "another beta and another loss have the same reference"
    assert one.reference_N2 is not None and other.reference_N2 is not None
    assert np.array_equal(one.reference_N2, other.reference_N2)


def test_the_scores_do_not_depend_on_where_the_data_lie(folder: Path, tmp_path: Path) -> None:
    add_all(scorer_of(folder, tmp_path / "cache"), loader(folder).corpus)
    moved = tmp_path / "moved.jsonl"
    moved.write_text((folder / "train.jsonl").read_text())
    again = scorer_of(folder, tmp_path / "cache")
    add_all(again, loader(folder, **{"data.train": [str(moved)]}).corpus)
    assert calls(again) == 0


@pytest.mark.parametrize("changed", ["model", "precision", "attention"])
def test_another_model_or_way_to_compute_is_scored_anew(folder: Path, tmp_path: Path, changed: str) -> None:
    add_all(scorer_of(folder, tmp_path), loader(folder).corpus)
    again = scorer_of(folder, tmp_path, {**FACTS, changed: "another"})
    add_all(again, loader(folder).corpus)
    assert calls(again) > 0
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_another_template_or_other_data_are_scored_anew(folder: Path, tmp_path: Path) -> None:
    add_all(scorer_of(folder, tmp_path), loader(folder).corpus)
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    again = scorer_of(folder, tmp_path)
    add_all(again, loader(folder, **{"data.chat_template": str(template)}).corpus)
    assert calls(again) > 0
    lines = (folder / "train.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(lines[:-1]))
    third = scorer_of(folder, tmp_path)
    add_all(third, loader(folder, **{"data.train": [str(tmp_path / "fewer.jsonl")]}).corpus)
    assert calls(third) > 0


@pytest.mark.parametrize(("wrong", "named"), [({"model": "weights-2"}, "model"), ({"data": "other rows"}, "data")])
def test_a_file_that_holds_the_scores_of_something_else_is_refused_by_name(
    folder: Path, tmp_path: Path, wrong: dict[str, str], named: str
) -> None:
    scorer, corpus = scorer_of(folder, tmp_path), loader(folder).corpus
    add_all(scorer, corpus)
    (path,) = tmp_path.glob("*.safetensors")
    facts = scorer.cache.facts_of(corpus, scorer.layout)
    save_file(load_file(path), path, metadata={**facts, **wrong})
    with pytest.raises(UserError, match=f"of another reference: its {named} differs") as caught:
        add_all(scorer, loader(folder).corpus)
    assert caught.value.problems[0].where == str(path)


def test_a_file_with_other_rows_or_torn_is_refused(folder: Path, tmp_path: Path) -> None:
    scorer, corpus = scorer_of(folder, tmp_path), loader(folder).corpus
    add_all(scorer, corpus)
    (path,) = tmp_path.glob("*.safetensors")
    whole, facts = path.read_bytes(), scorer.cache.facts_of(corpus, scorer.layout)
    save_file({"scores": np.zeros((3, 2), dtype=np.float32)}, path, metadata=facts)
    with pytest.raises(UserError, match="number of records differs"):
        add_all(scorer, loader(folder).corpus)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read"):
        add_all(scorer, loader(folder).corpus)


def test_only_what_a_run_will_see_is_scored_and_a_longer_run_scores_the_rest(folder: Path, tmp_path: Path) -> None:
    corpus = loader(folder).corpus
    scorer_of(folder, tmp_path).add_to(corpus, np.array([1, 4]))
    assert corpus.reference_N2 is not None
    assert np.flatnonzero(~np.isnan(corpus.reference_N2[:, 0])).tolist() == [1, 4]
    first = corpus.reference_N2[[1, 4]].copy()
    scorer_of(folder, tmp_path).add_to(corpus, np.arange(6))
    assert np.flatnonzero(~np.isnan(corpus.reference_N2[:, 1])).tolist() == list(range(6))
    assert np.array_equal(corpus.reference_N2[[1, 4]], first)
    again = scorer_of(folder, tmp_path)
    again.add_to(loader(folder).corpus, np.array([0, 5]))
    assert calls(again) == 0


def test_a_stop_keeps_what_was_scored(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velocity.training.reference.KEPT_EVERY", 1)
    scorer, corpus = scorer_of(folder, tmp_path), loader(folder).corpus
    asked = iter([False, True])
    stopped = ReferenceScorer(**{**vars(scorer), "stopping": lambda: next(asked), "share": Share(micro=1)})
    with pytest.raises(InterruptedRun, match="while the reference was scored"):
        add_all(stopped, corpus)
    kept = scorer.cache.read(corpus, scorer.layout)
    assert 0 < np.isnan(kept[:, 0]).sum() < len(kept)
    add_all(scorer, corpus)
    assert corpus.reference_N2 is not None and not np.isnan(corpus.reference_N2).any()


def scores_on(ranks: Ranks, folder: Path, cache: Path, zero: int) -> list[list[float]]:
    changes = {"task": "preference", "strategy.zero": zero, "data.cache": str(cache), "batch.micro": 1}
    job = make_job(folder, changes)
    corpus, built = loader_of(job, ranks).corpus, built_on(job, ranks)
    environment = {"model_content": "weights-1", "model_folder": job.model.path}
    mesh = build_mesh(job.strategy, ranks)
    build_reference(job, built, environment, [(corpus, everything(corpus))], mesh, lambda: False)
    built.engine.engine.destroy()
    assert corpus.reference_N2 is not None
    return [[float(value) for value in row] for row in corpus.reference_N2]


@pytest.mark.parametrize("zero", [0, 3])
def test_two_ranks_score_as_one_process_and_share_the_result(
    pool: Pool, folder: Path, tmp_path: Path, zero: int
) -> None:
    corpus = loader(folder).corpus
    add_all(scorer_of(folder, tmp_path / "plain"), corpus)
    first, second = pool(scores_on, folder, tmp_path, zero)
    assert first == second
    assert corpus.reference_N2 is not None
    np.testing.assert_allclose(first, corpus.reference_N2, rtol=1e-5, atol=1e-4)
