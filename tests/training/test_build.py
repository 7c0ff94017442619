"""The parts that a rank builds: what is trained, with which activations kept, and what is refused before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.making import tiny_model_folder, write_jsonl
from tests.pool import Pool
from tests.running import WORDS, built_on, loader_of, make_job, plain_engine, prepare_folder
from velocity.config.training import TrainingJob
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import swap_folder
from velocity.models.scorer import CausalScorer
from velocity.training import build
from velocity.training.build import WithoutAdapter, build_measure, build_seed, clear_disk

GPU = [["NVIDIA H100 80GB HBM3", 80.0, 9.0]]


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_folder(tmp_path_factory.mktemp("build"))


def _kept(ranks: Ranks, folder: Path, recompute: str) -> bool:
    built = built_on(make_job(folder, {"strategy.recompute": recompute}), ranks)
    built.engine.engine.destroy()
    return not built.scorer.model.is_gradient_checkpointing


@pytest.mark.parametrize(("recompute", "kept"), [("none", True), ("layers", False)])
def test_activations_are_computed_again_where_that_is_asked_for(pool: Pool, folder: Path, recompute: str, kept: bool):
    assert pool(_kept, folder, recompute) == [kept, kept]


def _trained(ranks: Ranks, folder: Path, changes: dict[str, Any]) -> tuple[dict[str, int], list[str], bool]:
    """Sizes of the parameters that are trained, names of all others, and whether there is an adapter."""
    built = built_on(make_job(folder, changes), ranks)
    sizes = {name: getattr(value, "ds_numel", value.numel()) for name, value in built.scorer.named_parameters()}
    wanted = {name for name, value in built.scorer.named_parameters() if value.requires_grad}
    built.engine.engine.destroy()
    trained = {name: size for name, size in sizes.items() if name in wanted}
    return trained, [*(sizes.keys() - wanted)], built.adapter is not None


@pytest.mark.parametrize("zero", [0, 3])
def test_without_an_adapter_every_parameter_is_trained(pool: Pool, folder: Path, zero: int):
    trained, frozen, adapted = pool(_trained, folder, {"strategy.zero": zero})[0]
    assert (frozen, adapted) == ([], False)
    assert sum(trained.values()) > 50_000


@pytest.mark.parametrize("zero", [0, 3])
def test_with_an_adapter_it_alone_is_trained(pool: Pool, folder: Path, zero: int):
    changes = {"strategy.zero": zero, "adapter": {"rank": 8}}
    trained, frozen, adapted = pool(_trained, folder, changes)[0]
    assert adapted and frozen
    assert all(".lora_" in name for name in trained) and not [name for name in frozen if ".lora_" in name]
    # 2 layers of width 64, half as wide for keys and values, twice as wide inside: inputs and outputs of q, k, v, o,
    # gate, up and down are 128 + 96 + 96 + 128 + 192 + 192 + 192 = 1024, times the rank
    assert sum(trained.values()) == 2 * 8 * 1024


def _scores_off(ranks: Ranks, folder: Path) -> tuple[float, float, bool, bool]:
    """How far the policy without the adapter is from the plain model, and from the one with it; modes; a gradient."""
    job = make_job(folder, {"adapter": {"rank": 8, "dropout": 0.5}})
    built, batch = built_on(job, ranks), loader_of(job, ranks).micro_batches(0)[0]
    plain = plain_engine(make_job(folder, {}))
    with torch.no_grad():
        for name, value in built.scorer.named_parameters():
            if value.requires_grad:
                value.normal_(generator=torch.Generator().manual_seed(len(name)))
    off = WithoutAdapter(built)(batch)
    training = built.scorer.training
    built.engine.train(False)
    on, expected = built.engine(batch).detach(), plain(batch).detach()
    again = WithoutAdapter(built)(batch)
    assert torch.equal(off, again), "without dropout"
    modes = training and not built.scorer.training
    built.engine.engine.destroy()
    return float((off - expected).abs().max()), float((on - expected).abs().max()), modes, off.requires_grad


def test_without_its_adapter_a_model_scores_as_it_did_and_is_left_as_it_was(pool: Pool, folder: Path):
    off, on, same_mode, has_gradient = pool(_scores_off, folder)[0]
    assert off < 1e-5
    assert on > 1, "the adapter is back"
    assert same_mode and not has_gradient


def drawn(*place: int) -> list[float]:
    build_seed(place[0], place[2])(place[1])
    return torch.rand(4).tolist()


def test_dropout_is_a_function_of_seed_step_and_rank():
    with torch.random.fork_rng(devices=[]):
        first = drawn(0, 5, 1)
        torch.rand(100)
        assert drawn(0, 5, 1) == first
        places = [(seed, step, rank) for seed in (0, 1) for step in (0, 1, 1000) for rank in (0, 1, 7)]
        assert len({tuple(drawn(*place)) for place in places}) == len(places)


def test_what_is_measured_at_a_step_is_memory_and_on_a_gpu_its_share_of_arithmetic(folder: Path):
    scorer = plain_engine(make_job(folder, {})).scorer
    assert isinstance(scorer, CausalScorer)
    assert set(build_measure(scorer, {"gpus": []}, Ranks())(100.0)) == {"memory_gib"}
    found = build_measure(scorer, {"gpus": GPU}, Ranks(0, 0, 2))(100.0)
    parameters = sum(value.numel() for value in scorer.parameters())
    assert found["mfu"] == pytest.approx(6 * parameters * 100 / (2 * 989e12))
    assert found["memory_gib"] > 0


@pytest.fixture(name="pairs", scope="module")
def _pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    tiny_model_folder(folder / "model")
    rows = [{"prompt": f"{word}?", "chosen": f"{word} is", "rejected": f"no {word}"} for word in WORDS]
    write_jsonl(folder / "train.jsonl", rows)
    return folder


def probed(folder: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> list[str]:
    """Names of the checks that a run makes before it trains."""
    made: list[str] = []
    for name in ("check_scores", "check_isolation", "check_sharing"):
        monkeypatch.setattr(build, name, lambda *_, name=name: made.append(name))
    job = make_job(folder, changes)
    engine: Any = plain_engine(job)
    build.probe(build.Built(engine.scorer, engine, None), job)
    assert engine.scorer.training
    return made


@pytest.mark.parametrize(
    ("changes", "checks"),
    [
        ({"task": "sft"}, ["check_scores", "check_isolation"]),
        ({"task": "sft", "data.packing": False}, ["check_scores"]),
        ({"task": "preference"}, ["check_scores", "check_isolation", "check_sharing"]),
        ({"task": "preference", "data.packing": False}, ["check_scores", "check_sharing"]),
        ({"task": "preference", "preference": {"kind": "kto"}}, ["check_scores", "check_isolation"]),
    ],
)
def test_what_a_batch_will_rely_on_is_measured_before_training(
    pairs: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], checks: list[str]
):
    assert probed(pairs, monkeypatch, changes) == checks


def test_an_attention_that_cannot_share_a_prompt_is_not_asked_to(pairs: Path, monkeypatch: pytest.MonkeyPatch):
    model = {"path": str(pairs / "model"), "attention": "sdpa"}
    made = probed(pairs, monkeypatch, {"task": "preference", "model": model})
    assert made == ["check_scores", "check_isolation"]


def test_rows_at_once_are_those_of_the_plan(folder: Path):
    job: TrainingJob = make_job(folder, {"batch.micro": 3})
    assert build.micro(job) == 3


def swapping(output: Path, disk: Path, optimizer: str, parameters: str) -> TrainingJob:
    offload = {"optimizer": optimizer, "parameters": parameters, "path": str(disk)}
    return make_job(output, {"strategy.zero": 3, "strategy.offload": offload})


def put(folder: Path) -> Path:
    """A file of a swap folder's kind, some folders down."""
    file = folder / "zero_stage_3" / "rank0" / "0.swp"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(8))
    return file


@pytest.mark.parametrize("places", [("nvme", "none"), ("nvme", "cpu"), ("nvme", "nvme")])
def test_a_run_that_ends_removes_its_own_folder_of_a_disk_and_nothing_else(tmp_path: Path, places: tuple[str, str]):
    disk = tmp_path / "disk"
    job, other = (swapping(tmp_path / name, disk, *places) for name in ("one", "other"))
    put(Path(swap_folder(job)))
    kept = [put(Path(swap_folder(other))), put(disk / "velocity"), put(tmp_path / "one" / "run")]
    clear_disk(job, Ranks())
    assert not Path(swap_folder(job)).exists()
    assert all(file.is_file() for file in kept) and len(list(disk.iterdir())) == 2
    clear_disk(job, Ranks())  # and there is nothing left to remove


def test_the_first_rank_removes_it_and_no_other(tmp_path: Path):
    job = swapping(tmp_path, tmp_path / "disk", "nvme", "nvme")
    file = put(Path(swap_folder(job)))
    clear_disk(job, Ranks(1, 1, 2))
    assert file.is_file()
    clear_disk(job, Ranks(0, 0, 2))
    assert not file.exists() and (tmp_path / "disk").is_dir()


def test_a_run_that_has_nothing_on_a_disk_removes_nothing(tmp_path: Path):
    file = put(Path(swap_folder(swapping(tmp_path, tmp_path / "disk", "nvme", "nvme"))))
    for place in ("cpu", "none"):
        clear_disk(make_job(tmp_path, {"strategy.zero": 3, "strategy.offload.optimizer": place}), Ranks())
        assert file.is_file()
