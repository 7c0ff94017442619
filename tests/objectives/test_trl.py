"""Each objective against TRL's own trainer: loss, gradient of every parameter and metrics, on the same tokens.

TRL pads every prompt with its answer into a row of its own; our batches hold packed rows and share a pair's prompt. So
the two agree only where the layout, the attention and the objective are all right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.data.stores import corpus_of
from tests.making import tiny_config, tiny_model, tiny_tokenizer
from tests.objectives.tiny import (
    GRADIENTS,
    PAIRS,
    ROWS,
    VOCABULARY,
    engine_of,
    furthest,
    furthest_relative,
    gradients_of,
    learn,
    record,
    reference_of,
    rows_of,
)
from velocity.batch import IGNORED, Batch
from velocity.config.objective import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig
from velocity.data.encode import TokenSequence
from velocity.data.layout import Pairs, SingleAnswers
from velocity.objectives.answers import SFTTerm, answers_of
from velocity.objectives.cpo import CPO
from velocity.objectives.dpo import DPO
from velocity.objectives.kto import KTO
from velocity.objectives.objective import Objective
from velocity.objectives.orpo import ORPO
from velocity.objectives.simpo import SimPO

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
    pytest.mark.filterwarnings("ignore:`(is_)?gradient_checkpointing` is deprecated"),  # TRL uses it
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # and something that it imports
]
TOLERANCE = 1e-5
POLICY, REFERENCE = 0, 1  # seeds
ROW = {"prompt": "Why?", "chosen": " Yes.", "rejected": " No.", "completion": " Yes.", "label": True}
Tokens = tuple[Sequence[int], Sequence[int]]  # ids, and for each whether it is trained on
MakeTrainer = Callable[..., Any]


@pytest.fixture(scope="module")
def trainer(tmp_path_factory) -> MakeTrainer:
    """Makes a trainer of TRL around a tiny model; what it would train on is one row, and is never looked at."""
    folder, tokenizer = tmp_path_factory.mktemp("trl"), tiny_tokenizer()

    def make(kind: str, *, policy: int = POLICY, reference: int | None = None, **settings: Any) -> Any:
        import trl
        from datasets import Dataset
        from trl.experimental import cpo, orpo

        home = {"CPO": cpo, "ORPO": orpo}.get(kind, trl)
        columns = ("prompt", "completion", "label") if kind == "KTO" else ("prompt", "chosen", "rejected")
        arguments = getattr(home, f"{kind}Config")(
            output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, **settings
        )
        frozen = {} if reference is None else {"ref_model": tiny_model(tiny_config(VOCABULARY), reference)}
        return getattr(home, f"{kind}Trainer")(
            model=tiny_model(tiny_config(VOCABULARY), policy), args=arguments, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{column: ROW[column] for column in columns}] * 2), **frozen,
        )  # fmt: skip

    return make


@dataclass(frozen=True)
class Learned:
    """What one global batch does to a model."""

    loss: float
    gradients: GRADIENTS
    metrics: Mapping[str, float]


def ours(objective: Objective, batch: Batch, policy: int = POLICY) -> Learned:
    """By our objective and engine; metrics are means."""
    engine = engine_of(policy)
    loss, gradients = learn(objective, engine, [batch])
    sums = objective(engine, batch).metrics
    return Learned(loss, gradients, {name: float(value) / objective.units(batch) for name, value in sums.items()})


def theirs(trainer: Any, *inputs: Mapping[str, Tensor]) -> Learned:
    """By TRL's loss function, the mean over some batches; metrics are those of the last one."""
    total = 0.0
    for batch in inputs:
        if hasattr(trainer, "get_batch_loss_metrics"):
            loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
        else:
            loss = trainer._compute_loss(trainer.model, batch, False)
            kept = trainer._metrics["train" if trainer.model.training else "eval"]
            metrics = {name: values[-1] for name, values in kept.items()}
        (loss / len(inputs)).backward()
        total += loss.item() / len(inputs)
    return Learned(total, gradients_of(trainer.model), metrics)


def assert_same(found: Learned, expected: Learned, metrics: Mapping[str, str]) -> None:
    """The loss, every number of every gradient and the named metrics (ours to TRL's) differ by less than 1e-5."""
    assert found.loss == pytest.approx(expected.loss, rel=0, abs=TOLERANCE)
    assert furthest(found.gradients, expected.gradients) < TOLERANCE
    assert furthest_relative(found.gradients, expected.gradients) < TOLERANCE  # small gradients are right, too
    for name, other in metrics.items():
        assert found.metrics[name] == pytest.approx(expected.metrics[other], rel=TOLERANCE, abs=TOLERANCE), name


REWARDS = {
    "chosen_reward": "rewards/chosen",
    "rejected_reward": "rewards/rejected",
    "margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
}
LOGPS = {"chosen_logps": "logps/chosen", "rejected_logps": "logps/rejected"}


@dataclass(frozen=True)
class Data:
    """The same pairs as our batch holds them, and as prompt with chosen, then prompt with rejected answer."""

    batch: Batch
    chosen: list[Tokens]
    rejected: list[Tokens]


def pairs(folder: Path, records: Sequence[TokenSequence], *, share_prompt: bool = True) -> Data:
    batch = Pairs(share_prompt=share_prompt).collate(corpus_of(folder, records), rows_of(ROWS))
    order = [number for row in ROWS for number in row]
    both = [[with_answer(records[number], which) for number in order] for which in (0, 1)]
    return Data(batch, both[0], both[1])


def with_answer(record: TokenSequence, which: int) -> Tokens:
    prompt, *lengths = record.parts
    start = prompt + sum(lengths[:which])
    keep = [*range(prompt), *range(start, start + lengths[which])]
    return record.ids[keep].tolist(), record.trained[keep].tolist()


@pytest.fixture
def ragged(tmp_path: Path) -> Data:
    """Five pairs of very different lengths, in three packed rows; some answers have a token not trained on."""
    return pairs(tmp_path, [record(parts, seed) for seed, parts in enumerate(PAIRS)])


def padded(rows: Sequence[Sequence[int]], value: int = 0) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def masked(rows: Sequence[Tokens], prefix: str = "") -> dict[str, Tensor]:
    """As DPOTrainer and KTOTrainer take them: what is trained on is a mask of its own."""
    return {
        f"{prefix}input_ids": padded([ids for ids, _ in rows]),
        f"{prefix}attention_mask": padded([[1] * len(ids) for ids, _ in rows]),
        f"{prefix}completion_mask": padded([trained for _, trained in rows]),
    }


def labelled(data: Data) -> dict[str, Tensor]:
    """As CPOTrainer and ORPOTrainer take them: what is not trained on has the label -100."""
    batch = {}
    for side, rows in (("chosen", data.chosen), ("rejected", data.rejected)):
        labels = [[i if kept else IGNORED for i, kept in zip(*row, strict=True)] for row in rows]
        batch[f"{side}_input_ids"] = padded([ids for ids, _ in rows])
        batch[f"{side}_attention_mask"] = padded([[1] * len(ids) for ids, _ in rows])
        batch[f"{side}_labels"] = padded(labels, IGNORED)
    return batch


DPO_CASES: dict[str, tuple[DPOConfig, dict[str, Any]]] = {
    "sigmoid": (DPOConfig(beta=0.1), {"loss_type": ["sigmoid"]}),
    "sigmoid with another beta": (DPOConfig(beta=0.4), {"loss_type": ["sigmoid"]}),
    "robust": (DPOConfig(loss="robust", label_smoothing=0.2), {"loss_type": ["robust"], "label_smoothing": 0.2}),
    "hinge": (DPOConfig(loss="hinge", beta=0.3), {"loss_type": ["hinge"]}),
    "ipo": (DPOConfig(loss="ipo", beta=0.5), {"loss_type": ["ipo"]}),
    "sigmoid and sft": (DPOConfig(sft_weight=0.7), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    "hinge and sft": (
        DPOConfig(loss="hinge", sft_weight=1.5),
        {"loss_type": ["hinge", "sft"], "loss_weights": [1.0, 1.5]},
    ),
}


@pytest.mark.parametrize("case", DPO_CASES)
def test_dpo_is_that_of_trl(trainer: MakeTrainer, ragged: Data, case: str):
    config, settings = DPO_CASES[case]
    expected = theirs(
        trainer("DPO", reference=REFERENCE, beta=config.beta, **settings), masked([*ragged.chosen, *ragged.rejected])
    )
    assert_same(ours(DPO(config, reference_of(REFERENCE)), ragged.batch), expected, {**REWARDS, **LOGPS})


def test_dpo_with_each_prompt_computed_twice_is_that_of_trl(trainer: MakeTrainer, tmp_path: Path):
    data = pairs(tmp_path, [record(parts, seed) for seed, parts in enumerate(PAIRS)], share_prompt=False)
    expected = theirs(trainer("DPO", reference=REFERENCE), masked([*data.chosen, *data.rejected]))
    assert_same(ours(DPO(DPOConfig(), reference_of(REFERENCE)), data.batch), expected, {**REWARDS, **LOGPS})


def test_some_pairs_of_the_batch_are_beyond_the_hinge_and_some_before_it(ragged: Data):
    # so that the comparison with TRL sees both of its sides, and pairs on both sides of 0 for the others
    objective = DPO(DPO_CASES["hinge"][0], reference_of(REFERENCE))
    total = objective(engine_of(POLICY), ragged.batch)
    assert 0 < total.metrics["accuracy"] < 5
    assert total.total.item() > float(5 - total.metrics["margin"]) + 0.1, "no pair is beyond the hinge"


def test_conservative_dpo_is_the_mean_of_trls_over_single_pairs(trainer: MakeTrainer, ragged: Data):
    # TRL's sigmoid has no label smoothing any more. Its "aot" has: it sorts the policy's and the reference's log-ratios
    # of a batch before it compares them, and one pair is always sorted, so on single pairs it is conservative DPO.
    single = [masked([chosen, rejected]) for chosen, rejected in zip(ragged.chosen, ragged.rejected, strict=True)]
    expected = theirs(trainer("DPO", reference=REFERENCE, loss_type=["aot"], label_smoothing=0.15), *single)
    assert_same(ours(DPO(DPOConfig(label_smoothing=0.15), reference_of(REFERENCE)), ragged.batch), expected, {})


@pytest.mark.parametrize("alpha", [1.0, 0.0, 0.3])
def test_cpo_is_that_of_trl(trainer: MakeTrainer, ragged: Data, alpha: float):
    expected = theirs(trainer("CPO", beta=0.2, cpo_alpha=alpha), labelled(ragged))
    assert_same(ours(CPO(CPOConfig(beta=0.2, sft_weight=alpha)), ragged.batch), expected, {**REWARDS, **LOGPS})


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (4.0, 0.3)])
def test_simpo_is_that_of_trl(trainer: MakeTrainer, ragged: Data, beta: float, gamma: float):
    # TRL's log-probabilities of SimPO are means a token, so they are compared as rewards
    settings = {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": beta, "simpo_gamma": gamma}
    expected = theirs(trainer("CPO", **settings), labelled(ragged))
    assert_same(ours(SimPO(SimPOConfig(beta=beta, gamma=gamma)), ragged.batch), expected, REWARDS)


def test_orpo_is_that_of_trl(trainer: MakeTrainer, tmp_path: Path):
    # TRL's SFT term is over prompt and answer, ours over the answer, as in the paper. Nothing predicts the first token
    # of a sequence, so behind prompts of one token, and with answers that are trained on throughout, both are the same.
    records = [record((1, *parts[1:]), seed, holes=False) for seed, parts in enumerate(PAIRS)]
    data = pairs(tmp_path, records)
    expected = theirs(trainer("ORPO", beta=0.4), labelled(data))
    assert_same(ours(ORPO(ORPOConfig(beta=0.4)), data.batch), expected, REWARDS)


def test_the_odds_ratio_of_orpo_is_that_of_trl_behind_longer_prompts_too(trainer: MakeTrainer, ragged: Data):
    oracle, objective = trainer("ORPO", beta=0.4), ORPO(ORPOConfig(beta=0.4))
    objective.sft = SFTTerm(0.0)
    chosen, rejected, *_ = oracle.concatenated_forward(oracle.model, labelled(ragged))
    loss = -oracle.odds_ratio_loss(chosen, rejected)[0].mean()
    loss.backward()
    expected = Learned(loss.item(), gradients_of(oracle.model), {})
    assert_same(ours(objective, ragged.batch), expected, {})


def read(batch: Batch) -> list[Tokens]:
    """The single sequences of a batch: the input tokens, and behind them the last label."""
    rows: list[Tokens] = []
    for b, lengths in enumerate(batch.lengths_B):
        start = 0
        for length in lengths:
            ids, labels = (part[b, start : start + length].tolist() for part in (batch.input_ids_BS, batch.labels_BS))
            rows.append(([*ids, labels[-1]], [0, *(int(label != IGNORED) for label in labels)]))
            start += length
    return rows


@pytest.mark.parametrize(("policy", "reference"), [(POLICY, REFERENCE), (REFERENCE, POLICY)])
def test_kto_is_that_of_trl_on_the_same_mismatched_answers(
    trainer: MakeTrainer, tmp_path: Path, policy: int, reference: int
):
    # TRL makes mismatched answers by rotating within a batch; it is given ours
    records = [record((prompt, answer, 0), seed) for seed, (prompt, answer, _) in enumerate(PAIRS)]
    order = [number for row in ROWS for number in row]
    batch = SingleAnswers(64).collate(corpus_of(tmp_path, records), rows_of(ROWS))
    mismatched = answers_of(batch).mismatched
    assert mismatched is not None
    label = [records[number].desirable for number in order]
    inputs = {
        **masked([with_answer(records[number], 0) for number in order]),
        **masked(read(mismatched), "KL_"),
        "label": torch.tensor(label),
    }
    weights = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    settings = {**weights, "per_device_train_batch_size": 2}
    expected = theirs(trainer("KTO", policy=policy, reference=reference, **settings), inputs)
    found = ours(KTO(KTOConfig(**weights), reference_of(reference)), batch, policy)
    assert 0 < sum(label) < len(label), "both kinds of answers"
    names = {"kl": "kl", **{name: other for name, other in REWARDS.items() if name != "accuracy"}, **LOGPS}
    assert_same(found, expected, names)


def test_the_reference_point_is_positive_in_one_of_these_cases_and_cut_off_in_the_other(tmp_path: Path):
    records = [record((prompt, answer, 0), seed) for seed, (prompt, answer, _) in enumerate(PAIRS)]
    batch = SingleAnswers(64).collate(corpus_of(tmp_path, records), rows_of(ROWS))
    points = []
    for policy, reference in ((POLICY, REFERENCE), (REFERENCE, POLICY)):
        objective = KTO(KTOConfig(), reference_of(reference))
        objective.prepare(engine_of(policy), [batch])
        points.append(objective.kl)
    assert sorted(points)[0] == 0 < sorted(points)[1]
