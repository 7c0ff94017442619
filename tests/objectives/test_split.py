"""A global batch may be split into micro-batches anywhere; one with nothing in it adds nothing, yet has a graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.stores import corpus_of
from tests.objectives.tiny import (
    PAIRS,
    ROWS,
    distance,
    engine_of,
    gradients_of,
    learn,
    record,
    reference_of,
    rows_of,
)
from velocity.batch import Batch
from velocity.config.objective import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from velocity.data.corpus import Corpus
from velocity.data.layout import Layout, Pairs, SingleAnswers
from velocity.objectives.answers import Reference
from velocity.objectives.cpo import CPO
from velocity.objectives.dpo import DPO
from velocity.objectives.kto import KTO
from velocity.objectives.objective import Objective
from velocity.objectives.orpo import ORPO
from velocity.objectives.simpo import SimPO

POLICY, REFERENCE = 1, 0  # seeds; this way round the reference point of KTO is above 0

OBJECTIVES: dict[str, Callable[[Reference], Objective]] = {
    "dpo": lambda reference: DPO(DPOConfig(), reference),
    "conservative dpo": lambda reference: DPO(DPOConfig(label_smoothing=0.1), reference),
    "robust dpo": lambda reference: DPO(DPOConfig(loss="robust", label_smoothing=0.1), reference),
    "hinge": lambda reference: DPO(DPOConfig(loss="hinge"), reference),
    "ipo": lambda reference: DPO(DPOConfig(loss="ipo", beta=0.5), reference),
    "dpo and sft": lambda reference: DPO(DPOConfig(sft_weight=0.5), reference),
    "orpo": lambda reference: ORPO(ORPOConfig()),
    "simpo": lambda reference: SimPO(SimPOConfig()),
    "cpo": lambda reference: CPO(CPOConfig()),
    "kto": lambda reference: KTO(KTOConfig(desirable_weight=1.2), reference),
}


def data_of(name: str, folder: Path) -> tuple[Layout, Corpus]:
    if name == "kto":
        singles = [record((prompt, answer, 0), seed) for seed, (prompt, answer, _) in enumerate(PAIRS)]
        return SingleAnswers(64), corpus_of(folder, singles)
    return Pairs(share_prompt=True), corpus_of(folder, [record(parts, seed) for seed, parts in enumerate(PAIRS)])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_micro_batches_of_one_pair_give_the_loss_and_gradient_of_all_of_them_together(tmp_path: Path, name: str):
    layout, corpus = data_of(name, tmp_path)
    order = [number for row in ROWS for number in row]
    whole = [layout.collate(corpus, rows_of(ROWS))]
    split = [layout.collate(corpus, rows_of([[number]])) for number in order]
    split.append(layout.collate(corpus, []))  # as a rank has it that runs out of rows
    engine, reference = engine_of(POLICY), reference_of(REFERENCE)
    loss, gradients = learn(OBJECTIVES[name](reference), engine, whole)
    parts_loss, parts_gradients = learn(OBJECTIVES[name](reference), engine, split)
    assert parts_loss == pytest.approx(loss, rel=1e-6, abs=1e-6)
    assert distance(parts_gradients, gradients) < 1e-6  # in fp32, whose steps are 1.2e-7


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_metrics_of_micro_batches_add_up_to_those_of_all_of_them_together(tmp_path: Path, name: str):
    layout, corpus = data_of(name, tmp_path)
    engine, objective = engine_of(POLICY), OBJECTIVES[name](reference_of(REFERENCE))

    def sums(batches: list[Batch]) -> dict[str, float]:
        objective.prepare(engine, batches)
        found = [objective(engine, batch).metrics for batch in batches]
        return {name: sum(float(part[name]) for part in found) for name in found[0]}

    whole = sums([layout.collate(corpus, rows_of(ROWS))])
    assert sums([layout.collate(corpus, rows_of([row])) for row in ROWS]) == pytest.approx(whole, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_batch_without_answers_adds_nothing_and_still_has_a_graph(tmp_path: Path, name: str):
    # a rank without a row has to take part in every collective of the backward pass
    layout, corpus = data_of(name, tmp_path)
    engine, objective = engine_of(POLICY), OBJECTIVES[name](reference_of(REFERENCE))
    empty = layout.collate(corpus, [])
    objective.prepare(engine, [empty])
    output = objective(engine, empty)
    assert objective.units(empty) == 0 and output.total.item() == 0
    assert all(float(value) == 0 for value in output.metrics.values())
    engine.backward(output.total)
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients_of(engine.scorer.model).values())
