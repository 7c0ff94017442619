"""Which candidates there are, in which order, and what is an error: on clusters that no test has."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.planner.shapes import LLAMA_7B, LLAMA_70B, SEVEN_BILLION, job, on, open_job
from velocity.config.combinations import NOT_SEQUENCED, NOT_STAGED, SPLIT_ARCHITECTURES, clashes
from velocity.errors import UserError
from velocity.planner.candidates import DEGREES, check_limits, evaluate, order, ranked
from velocity.planner.hardware import Hardware
from velocity.planner.machines import Cluster, parse_gpus, parse_instance

H100S, TWO_NODES = parse_gpus("8xH100-80"), parse_gpus("2x8xH200-141")


def test_seventy_billion_on_eight_gpus_of_80_gib_need_offload_and_on_two_nodes_of_141_do_not():
    first = ranked(open_job(), on(LLAMA_70B, H100S))[0]
    assert first.fits and first.job.strategy.offload.optimizer == "cpu"
    first = ranked(open_job(), on(LLAMA_70B, TWO_NODES))[0]
    assert first.fits and first.job.strategy.offload.optimizer == first.job.strategy.offload.parameters == "none"
    assert first.job.strategy.zero == 3


def test_no_candidate_clashes_and_nothing_is_left_open():
    found = ranked(open_job(), on(LLAMA_70B, H100S))
    assert len(found) >= 8
    for one in found:
        assert list(clashes(one.job)) == []
        assert "auto" not in one.job.strategy.model_dump().values() and one.job.batch.micro != "auto"


def test_what_fits_comes_first_then_what_lacks_least():
    found = ranked(open_job(), on(LLAMA_70B, H100S))
    fits = [one.fits for one in found]
    assert fits == sorted(fits, reverse=True) and len(set(fits)) == 2
    lacking = [round(sum(one.short.values()) / 2**20) for one in found if not one.fits]
    assert lacking == sorted(lacking) and lacking[0] > 0


def test_of_equally_fast_ones_the_simplest_is_taken():
    first = ranked(open_job(), on(LLAMA_7B, parse_gpus("8xB200-179")))[0]
    assert first.job.strategy.zero == 1 and first.job.strategy.recompute == "none"


def test_more_rows_at_once_never_push_a_candidate_over_the_edge():
    for one in ranked(open_job(), on(LLAMA_7B, H100S)):
        assert one.fits or one.job.batch.micro == 1


def test_a_further_axis_is_taken_only_where_nothing_else_fits():
    long = open_job(data__sequence_length=262144, batch={"rows": 8, "micro": 1})
    setting = on(LLAMA_7B, parse_instance("ml.p4d.24xlarge"))
    first = ranked(long, setting)[0]
    assert first.fits and first.job.strategy.sequence not in ("auto", 1)
    assert ranked(open_job(), on(LLAMA_7B, H100S))[0].job.strategy.sequence == 1
    unknown = on(SEVEN_BILLION, parse_instance("ml.p4d.24xlarge"))
    assert all(one.job.strategy.sequence == 1 for one in ranked(long, unknown)), "it is not known to split"


@pytest.mark.parametrize("model_type", SPLIT_ARCHITECTURES)
def test_every_architecture_that_was_compared_is_spread_along_the_axes_it_was_compared_on(model_type: str):
    size = replace(LLAMA_7B, model_type=model_type)
    long = open_job(data__sequence_length=262144, batch={"rows": 8, "micro": 1})
    found = [one.job.strategy for one in ranked(long, on(size, parse_instance("ml.p4d.24xlarge")))]
    spread = {name for one in found for name in DEGREES if getattr(one, name) != 1}
    refused = {"pipeline": NOT_STAGED, "sequence": NOT_SEQUENCED}
    assert spread == {name for name in DEGREES if model_type not in refused.get(name, ())}


def test_what_the_job_says_itself_is_never_changed():
    asked = job(
        strategy={"zero": 2, "precision": "bf16", "offload": {"optimizer": "cpu"}}, batch={"rows": 64, "micro": 3}
    )
    for one in ranked(asked, on(LLAMA_70B, H100S)):
        strategy = one.job.strategy
        assert (strategy.zero, strategy.offload.optimizer, one.job.batch.micro) == (2, "cpu", 3)


def test_a_processor_has_nothing_offloaded_and_one_process_no_stage():
    found = ranked(open_job(), on(LLAMA_7B, Cluster(Hardware(8, 512.0, cpu_bf16=True))))
    assert {one.job.strategy.offload.optimizer for one in found} == {"none"}
    assert {one.job.strategy.zero for one in found} == {1}


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("tensor", 3, "a number of processes that it divides"), ("sequence", 5, "a number of processes that it divides"),
     ("tensor", 16, "a number of processes")],
)  # fmt: skip
def test_what_the_machine_cannot_do_is_an_error_at_its_key(key: str, value: int, said: str):
    asked = job(strategy={"zero": 1, key: value})
    with pytest.raises(UserError, match=said) as caught:
        check_limits(asked, on(LLAMA_7B, H100S))
    assert caught.value.problems[0].where == f"strategy.{key}"


def test_heads_that_a_degree_does_not_divide_are_an_error():
    with pytest.raises(UserError, match="key heads"):
        check_limits(job(strategy={"zero": 1, "tensor": 16}), on(LLAMA_70B, TWO_NODES))


def test_a_candidate_says_its_strategy_in_words():
    made = job(strategy__offload={"optimizer": "cpu", "parameters": "none"})
    assert evaluate(made, on(LLAMA_70B, H100S)).words == "ZeRO 3, optimizer on cpu, recompute layers, micro 1"


def test_calibration_multiplies_what_is_beside_the_states_and_divides_time():
    setting = on(LLAMA_7B, H100S)
    plain = evaluate(job(), setting)
    taught = evaluate(job(), type(setting)(LLAMA_7B, H100S, 8, {"activations": 2.0, "speed": 0.5}))
    assert taught.memory.device.activations == 2 * plain.memory.device.activations
    assert taught.memory.device.optimizer == plain.memory.device.optimizer
    assert taught.speed.seconds == pytest.approx(2 * plain.speed.seconds)


def test_the_order_is_the_same_however_candidates_come():
    found = ranked(open_job(), on(LLAMA_7B, H100S))
    assert [one.words for one in order(reversed(found))] == [one.words for one in found]
