"""Tensor parallelism computes what one process does: losses and gradient norms of SGD steps that are clipped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from tests.making import tiny_model, tiny_tokenizer, write_jsonl
from tests.pool import Pool
from tests.running import (
    Steps,
    assert_same,
    make_job,
    plain_engine,
    preference_steps,
    probed_steps_on,
    ragged_rows,
    steps_on,
    take_steps,
)
from velocity.config.combinations import SPLIT_ARCHITECTURES
from velocity.distributed.comm import Ranks

SGD = {"kind": "sgd", "learning_rate": 0.1, "schedule": "constant", "warmup": 0, "gradient_clipping": 0.5}
TENSOR = {"optimizer": SGD, "strategy.tensor": 2, "strategy.zero": 1}
# Sizes are odd where they may be: 131 of an MLP and 331 of the vocabulary are not a multiple of two.
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 131, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "vocab_size": 331,
    "initializer_range": 0.1, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    "attention_dropout": 0.0, "residual_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
}  # fmt: skip
EAGER = ("gemma2",)  # they soften attention's scores


def prepare(folder: Path, architecture: str, **changes: Any) -> Path:
    """`folder` holds ragged chats and a tiny model of an architecture, whose biases and norms are random, too."""
    model = tiny_model(AutoConfig.for_model(architecture, **{**SIZES, **changes}))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(str(folder / "model"))
    tiny_tokenizer().save_pretrained(str(folder / "model"))
    write_jsonl(folder / "train.jsonl", ragged_rows())
    return folder


def expected_of(folder: Path, changes: Mapping[str, Any]) -> Steps:
    job = make_job(folder, {"optimizer": SGD, **changes})
    return take_steps(job, plain_engine(job), Ranks())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tensor")
    made = {"llama": {}, "llama, tied": {"tie_word_embeddings": True}, "qwen2": {}}
    return {name: prepare(folder / name, name.split(",")[0], **changes) for name, changes in made.items()}


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path]) -> dict[str, Steps]:
    return {name: expected_of(folder, {}) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["llama", "llama, tied", "qwen2"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_ranks_that_share_matrices_give_the_same_as_one_process(
    pool: Pool, folders: dict[str, Path], expected: dict[str, Steps], name: str, zero: int
) -> None:
    first, second = pool(steps_on, folders[name], {**TENSOR, "strategy.zero": zero})
    assert first == second
    assert_same(first, expected[name])


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_times_two_ranks_do_where_one_group_has_fewer_rows(
    pool4: Pool, folders: dict[str, Path], zero: int
) -> None:
    uneven = {"data.packing": False, "batch.rows": 5, "batch.micro": 1}  # the second group's last micro-batch is empty
    found = pool4(steps_on, folders["qwen2"], {**TENSOR, **uneven, "strategy.zero": zero})
    assert all(one == found[0] for one in found)
    assert_same(found[0], expected_of(folders["qwen2"], uneven))


def test_recomputed_layers_give_the_same(pool: Pool, folders: dict[str, Path], expected: dict[str, Steps]) -> None:
    for zero in (1, 3):
        changes = {**TENSOR, "strategy.zero": zero, "strategy.recompute": "layers"}
        assert_same(pool(steps_on, folders["qwen2"], changes)[0], expected["qwen2"])


def test_engines_of_one_process_do_not_take_each_others_groups(
    pool: Pool, folders: dict[str, Path], expected: dict[str, Steps]
) -> None:
    for tensor in (2, 1, 2):
        found = pool(steps_on, folders["qwen2"], {**TENSOR, "strategy.tensor": tensor})
        assert_same(found[0], expected["qwen2"])


def test_bf16_follows_fp32_to_its_rounding(pool: Pool, folders: dict[str, Path], expected: dict[str, Steps]) -> None:
    found = pool(steps_on, folders["qwen2"], {**TENSOR, "strategy.precision": "bf16"})[0]
    for (loss, norm), (right, right_norm) in zip(found, expected["qwen2"], strict=True):
        assert loss == pytest.approx(right, rel=0.01)  # bf16 has 8 bits of mantissa: 0.4 % a rounding
        assert norm == pytest.approx(right_norm, rel=0.03)


@pytest.mark.parametrize("architecture", SPLIT_ARCHITECTURES)
def test_an_architecture_of_the_list_splits_right(pool: Pool, tmp_path: Path, architecture: str) -> None:
    folder, changes = prepare(tmp_path, architecture), dict[str, Any]()
    if architecture in EAGER:
        changes = {"model": {"path": str(folder / "model"), "attention": "eager"}, "data.packing": False}
    first, second = pool(probed_steps_on, folder, {**TENSOR, **changes})
    assert first == second
    assert_same(first, expected_of(folder, changes))


@pytest.mark.parametrize("zero", [1, 3])
def test_a_live_reference_beside_split_matrices_gives_the_same(
    pool: Pool, pool4: Pool, tmp_path: Path, zero: int
) -> None:
    folder = prepare(tmp_path, "llama")
    pairs = [{"prompt": "Why? " * (1 + i % 4), "chosen": "check it " * (1 + i % 5), "rejected": "no " * (1 + i % 7)}
             for i in range(30)]  # fmt: skip
    write_jsonl(folder / "train.jsonl", pairs)
    task = {"task": "preference", "preference": {"kind": "dpo"}, "batch.rows": 6, "optimizer": SGD}
    right = preference_steps(Ranks(), folder, task)
    live = {**task, **TENSOR, "strategy.zero": zero, "preference": {"kind": "dpo", "reference": "live"}}
    for ranks in (pool, pool4):
        assert_same(ranks(preference_steps, folder, live)[0], right)
