"""Ranks as torchrun names them, and what they agree on: two real ones, and one alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.pool import Pool
from velocity.distributed import comm
from velocity.distributed.comm import Ranks, Tally
from velocity.errors import UserError


def test_a_rank_is_who_torchrun_says(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert comm.from_environment() == Ranks(rank=5, local_rank=1, world_size=8, local_size=4)


def test_only_rank_0_is_the_first_also_on_a_second_machine():
    assert Ranks(0, 0, 4).first
    assert not Ranks(2, 0, 4).first


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_a_gpu_computes_on_its_processor():
    assert Ranks(1, 1, 2).device == torch.device("cpu")


@pytest.mark.gpu
def test_a_rank_has_the_gpu_of_its_place_on_the_machine():
    assert Ranks(5, 1, 8).device == torch.device("cuda", 1)


def test_what_is_compiled_when_called_is_compiled_once_with_its_options(monkeypatch: pytest.MonkeyPatch):
    compiled: list[tuple[str, dict[str, Any]]] = []

    def compile_at_once(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        compiled.append((function.__name__, options))
        return function

    monkeypatch.setattr(torch, "compile", compile_at_once)
    with comm.compiled_when_called():

        @torch.compile
        def double(value: int) -> int:
            return 2 * value

        @torch.compile(dynamic=True)
        def triple(value: int, *, more: int) -> int:
            return 3 * value + more

    now: Any = torch.compile
    assert (now, compiled) == (compile_at_once, [])
    assert (double(1), double(2), triple(3, more=1), double.__name__) == (2, 4, 10, "double")
    assert compiled == [("double", {}), ("triple", {"dynamic": True})]


def test_a_rank_that_prepares_deepspeed_imports_no_compiler():
    code = """
import sys
from velocity.distributed import comm
comm.prepare_deepspeed()
import deepspeed.runtime.zero.muon.muon_optimizer
sys.exit("torch._inductor.compile_fx" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_alone_nothing_is_summed_sent_or_waited_for():
    value = torch.tensor([3.0])
    assert comm.sum_over_ranks(value) is value
    assert comm.from_first("a") == "a"
    assert comm.gather("a") == ["a"]
    comm.wait_for_all()
    comm.stop()


def _agree(ranks: Ranks) -> dict[str, Any]:
    import deepspeed.ops

    total = comm.sum_over_ranks(torch.tensor([1.0, 10.0 * ranks.rank]))
    return {
        "who": (ranks.rank, ranks.local_rank, ranks.world_size),
        "sum": total.tolist(),
        "first": comm.from_first({"rank": ranks.rank}),
        "all": comm.gather([ranks.rank] * ranks.rank),
        "compiles": deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"],
        "backend": torch.distributed.get_backend(),
    }


def test_two_ranks_agree_on_a_sum_and_on_what_the_first_says(pool: Pool):
    first, second = pool(_agree)
    assert (first.pop("who"), second.pop("who")) == ((0, 0, 2), (1, 1, 2))
    assert first == second
    assert first["sum"] == [2.0, 10.0]  # 1 + 1, 0 + 10
    assert first["first"] == {"rank": 0}
    assert first["all"] == [[], [1]]


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_on_a_processor_ranks_speak_gloo_and_compile_nothing(pool: Pool):
    for answer in pool(_agree):
        assert answer["backend"] == "gloo"
        assert answer["compiles"] is False


def _wait(ranks: Ranks, seconds: float) -> tuple[float, float]:
    """When this rank came to the barrier, and when it was let through."""
    time.sleep(seconds * ranks.rank)
    came = time.time()
    comm.wait_for_all()
    return came, time.time()


def test_no_rank_goes_on_before_the_last_has_come(pool: Pool):
    (_, first_left), (second_came, _) = pool(_wait, 0.3)
    assert first_left >= second_came


def test_a_plan_for_gpus_is_refused_where_torch_has_none_and_the_other_way_round():
    gpus = [["NVIDIA H100 80GB HBM3", 80.0, 9.0]]
    comm.check_device(torch.device("cpu"), [])
    comm.check_device(torch.device("cuda", 1), gpus)
    with pytest.raises(UserError, match=r"torch computes on cpu, the plan is for 1 GPU") as caught:
        comm.check_device(torch.device("cpu"), gpus)
    assert "docs/guides/hardware.md" in str(caught.value)
    with pytest.raises(UserError, match=r"torch computes on cuda, the plan is for 0 GPU"):
        comm.check_device(torch.device("cuda"), [])


def test_alone_a_counter_counts():
    tally = Tally(Ranks())
    assert [tally.add("taken"), tally.add("taken", 5), tally.add("taken", 0), tally.add("other")] == [1, 6, 6, 1]


def take_turns(ranks: Ranks, count: int) -> list[int]:
    tally = Tally(ranks)
    taken = [tally.add("taken") for _ in range(count)]
    comm.wait_for_all()  # the first rank's process serves the counter
    return taken


def test_two_ranks_never_take_the_same_number_and_leave_none_out(pool: Pool):
    one, other = pool(take_turns, 200)
    assert sorted([*one, *other]) == list(range(1, 401))
