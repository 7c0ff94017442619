"""What of a model's shape decides how it is streamed, by hand; and a folder on a fast disk that is ours alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.making import tiny_config, tiny_model_folder, tiny_tokenizer
from velocity.distributed.comm import Ranks
from velocity.distributed.ds_config import Shapes
from velocity.errors import UserError
from velocity.inference.streaming import SWAPPED_BYTES, prepare_disk, shapes_of


def test_shapes_are_counted_without_weights(tmp_path: Path):
    vocabulary = len(tiny_tokenizer())
    tiny_model_folder(tmp_path / "model", layers=3)
    (tmp_path / "model" / "model.safetensors").unlink()
    # hidden 64, two of four heads for keys and values, intermediate 128; the largest is the embedding
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128 + 2 * 64
    assert shapes_of(tmp_path / "model", torch.float32, 2, remote_code=False) == Shapes(vocabulary * 64, layer, 0)


@pytest.mark.parametrize(
    ("dtype", "world_size", "together"),
    # a matrix of 1024 x 4096 values: 16 MiB in fp32, 8 MiB in 16 bit; a rank's share counts from 1 MiB on
    [(torch.float32, 1, 1), (torch.bfloat16, 8, 1), (torch.bfloat16, 16, 0)],
)
def test_a_rank_swaps_what_is_large_enough(tmp_path: Path, dtype: torch.dtype, world_size: int, together: int):
    config = tiny_config(50, hidden_size=1024, intermediate_size=4096, num_hidden_layers=1)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(str(tmp_path))
    assert (1024 * 4096 * dtype.itemsize // world_size >= SWAPPED_BYTES) is bool(together)
    assert shapes_of(tmp_path, dtype, world_size, remote_code=False).together == together


class Reader:
    """DeepSpeed's operator: there, or not for want of libaio."""

    compatible, loaded = True, 0

    def is_compatible(self, *, verbose: bool) -> bool:
        return self.compatible

    def load(self) -> None:
        type(self).loaded += 1


@pytest.fixture(name="reader")
def _reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Reader]]:
    import deepspeed.ops.op_builder

    reader = type("Fresh", (Reader,), {"loaded": 0})
    monkeypatch.setattr(deepspeed.ops.op_builder, "AsyncIOBuilder", reader)
    yield reader


def test_the_first_rank_makes_an_empty_folder_and_every_rank_loads_the_reader(tmp_path: Path, reader: type[Reader]):
    folder = tmp_path / "fast" / "velocity-1"
    folder.mkdir(parents=True)
    (folder / "old.swp").write_text("of an attempt that was killed")
    (tmp_path / "fast" / "mine.txt").write_text("the user's")
    prepare_disk(folder, Ranks(1, 1, 2))
    assert [path.name for path in folder.iterdir()] == ["old.swp"], "another rank's to remove"
    prepare_disk(folder, Ranks(0, 0, 2))
    assert list(folder.iterdir()) == []
    assert (tmp_path / "fast" / "mine.txt").is_file()
    assert reader.loaded == 2


def test_a_system_without_libaio_is_told_what_to_do(tmp_path: Path, reader: type[Reader]):
    reader.compatible = False
    with pytest.raises(UserError, match="needs libaio") as caught:
        prepare_disk(tmp_path / "velocity-1", Ranks())
    assert "use cpu in place of nvme" in caught.value.problems[0].fix
    assert reader.loaded == 0


def test_a_folder_that_cannot_be_made_is_named_by_its_key(tmp_path: Path, reader: type[Reader]):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="no folder for weights: Not a directory") as caught:
        prepare_disk(tmp_path / "file" / "velocity-1", Ranks())
    assert caught.value.problems[0].where == "strategy.offload.path"
