"""DeepSpeed's pipeline with ZeRO 1: each rank runs a stage of the model. It knows no objective and no data set.

The ranks of a pipeline take the same micro-batches, so only hidden states travel between them, and the way back their
gradients. Micro-batches follow each other through the stages (1F1B: arXiv 2104.04473).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from velocity.batch import Batch
from velocity.distributed import comm
from velocity.distributed.engine import Loss, Objective, StepStats, set_rate
from velocity.distributed.flats import Flat, Known, refresh, scaler_of, zero_flats
from velocity.distributed.mesh import Mesh


class StageModule(Protocol):
    """A module that is one stage of a model, called with what comes from the stage before and a batch's inputs."""

    last: bool

    @property
    def tied(self) -> nn.Parameter | None:
        """The weight that the first and the last stage both have."""
        ...

    def parameters_by_name(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Our parameters under the model's names for them."""

    def weights(self) -> Mapping[str, Tensor]:
        """Return our weights under the model's names for them; those of all stages are the model's."""


@dataclass(frozen=True)
class Summed:
    """What came of a micro-batch on the last stage, as every stage is told."""

    total: Tensor
    metrics: Mapping[str, Tensor]


class PipelineEngine:
    """Stages under deepspeed.initialize, one a rank."""

    def __init__(
        self, stage: nn.Module, optimizer: torch.optim.Optimizer, config: Mapping[str, Any], mesh: Mesh
    ) -> None:
        comm.prepare_deepspeed()
        import deepspeed

        self.stage: Any = stage  # a StageModule
        self.mesh, self.device = mesh, mesh.ranks.device
        self.feed = Feed(stage, self.device)
        self.losses: list[Loss] = []
        module = build_module(self.feed, mesh, self._loss)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine: Any = deepspeed.initialize(model=module, optimizer=optimizer, config=dict(config))[0]
        self.last_rank = mesh.groups[mesh.data_rank][-1]
        self._objective: Callable[[Tensor, Batch], Tensor] | None = None

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label, without gradient and dropout. Every rank calls it."""
        kept: list[Tensor] = []

        def keep(logps_BS: Tensor, batch: Batch) -> Tensor:
            kept.append(logps_BS)
            return logps_BS.new_zeros(())  # DeepSpeed adds up what it is given, over batches of any shape

        self._objective = keep
        self.feed.waiting.append(batch)
        self.engine.eval_batch(self._loaded([batch]), reduce_output=None, bcast_loss=False, num_micro_batches=1)
        logps_BS = kept[0] if kept else torch.empty(batch.labels_BS.shape, device=self.device)
        dist.broadcast(logps_BS, self.last_rank, group=self.mesh.inner_group)
        return logps_BS

    def _loaded(self, batches: Sequence[Batch]) -> Iterator[tuple[Tensor, Batch]]:
        """What the first stage begins with, and what the last one is given beside the scores."""
        return iter([(batch.input_ids_BS, batch) for batch in batches])

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        self.engine.train(mode)

    def learn(
        self, objective: Objective, batches: Sequence[Batch], units: int, learning_rate: float
    ) -> tuple[list[Loss], StepStats]:
        """One optimizer step; return each batch's loss."""

        def scaled(logps_BS: Tensor, batch: Batch) -> Tensor:
            loss = objective(Scored(batch, logps_BS), batch)
            self.losses.append(loss)
            # DeepSpeed averages over data-parallel ranks, and not over micro-batches: to it, a step has one
            data_ranks: int = self.engine.dp_world_size
            return loss.total / units * data_ranks

        set_rate(self.engine.optimizer.param_groups, learning_rate)
        self._objective, self.losses = scaled, []
        self.feed.waiting.extend(batches)
        self.engine.micro_batches = len(batches)
        self.engine.train_batch(self._loaded(batches))
        self.engine.timers("train_batch").reset()  # it keeps every step's time
        norm = self.engine.get_global_grad_norm()
        return self._told(), StepStats(float(norm), skipped=not self.engine.was_step_applied())

    def _loss(self, logps_BS: Tensor, batch: Batch) -> Tensor:
        assert self._objective is not None, "learn sets it"
        return self._objective(logps_BS, batch)

    def _told(self) -> list[Loss]:
        """The last stage's losses, on every stage."""
        values = [
            {"": loss.total.detach().double(), **{name: value.double() for name, value in loss.metrics.items()}}
            for loss in self.losses
        ]
        names = [list(each) for each in values]
        flat = [value.cpu() for each in values for value in each.values()]
        box = [(names, torch.stack(flat).tolist() if flat else [])]
        dist.broadcast_object_list(box, self.last_rank, group=self.mesh.inner_group)
        names, numbers = box[0][0], iter(box[0][1])
        told = [{name: torch.tensor(next(numbers), dtype=torch.float64) for name in each} for each in names]
        return [Summed(each.pop(""), each) for each in told]

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks, of those that share a model and its batches one."""
        return self.mesh.sum_over_data(value.to(self.device))

    def any_rank(self, flag: bool) -> bool:
        """True, on every rank, where it is on one."""
        return bool(comm.sum_over_ranks(torch.tensor(float(flag), device=self.device)) > 0)

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        """Our part of our stage."""
        names = {id(weight): name for name, weight in self.stage.parameters_by_name()}
        # the last stage's copy of a tied weight is the first one's
        known = Known(names, self.mesh, lambda weight: weight is not self.stage.tied or self.mesh.inner_rank == 0)
        return zero_flats(self.engine.optimizer, known, start=start)

    def refresh(self) -> None:
        """The weights that compute are those of the flat tensors."""
        refresh(self.engine.optimizer)

    @property
    def scaler(self) -> dict[str, Any]:
        """What fp16's dynamic loss scale has learned."""
        return scaler_of(self.engine)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole weights, on rank 0: those of the stages of the pipeline that it begins."""
        if self.mesh.data_rank != 0:
            return {}
        ours, ranks = dict(self.stage.weights()), self.mesh.groups[0]
        shapes: list[Any] = [None] * len(ranks)
        listed = [(name, tensor.shape, tensor.dtype) for name, tensor in ours.items()]
        dist.all_gather_object(shapes, listed, group=self.mesh.inner_group)
        if not self.mesh.ranks.first:
            for tensor in ours.values():
                dist.send(tensor.detach().contiguous(), ranks[0])
            return {}
        whole = {name: tensor.detach().cpu().clone() for name, tensor in ours.items()}
        for rank, theirs in zip(ranks[1:], shapes[1:], strict=True):
            for name, shape, dtype in theirs:
                received = torch.empty(shape, dtype=dtype, device=self.device)
                dist.recv(received, rank)
                whole[name] = received.cpu()
        return whole


class Feed(nn.Module):
    """A stage that takes each micro-batch's inputs from those that wait, in the order in which they come through."""

    def __init__(self, stage: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.stage, self.device = stage, device
        self.waiting: deque[Batch] = deque()

    def forward(self, received: Tensor) -> Tensor:
        """What the stage makes of the next micro-batch."""
        passed: Tensor = self.stage(received, *self.waiting.popleft().inputs(self.device)[1:])
        return passed


@dataclass(frozen=True)
class Scored:
    """The policy of one batch, whose scores are there already."""

    batch: Batch
    logps_BS: Tensor

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS of the batch."""
        assert batch is self.batch, "a pipeline scores one batch at a time: the objectives that need two are refused"
        return self.logps_BS


def build_module(feed: Feed, mesh: Mesh, loss: Callable[[Tensor, Batch], Tensor]) -> Any:
    """DeepSpeed's pipeline of one module a stage, of which ours is there. Every rank calls it: it makes groups."""
    from deepspeed.pipe import PipelineModule

    tied: nn.Parameter | None = feed.stage.tied  # type: ignore[assignment]
    pair = _pair(mesh)

    class Stages(PipelineModule):  # type: ignore[misc]
        """Sums the gradients of a weight that the first and the last stage both have."""

        def get_tied_weights_and_groups(self) -> list[tuple[nn.Parameter, Any]]:
            return [] if tied is None else [(tied, pair)]

    number, count = mesh.inner_rank, mesh.inner_size
    stages = [feed if i == number else nn.Identity() for i in range(count)]  # only ours is built
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its seeds and layers
        module = Stages(stages, num_stages=count, loss_fn=loss, partition_method="uniform", dynamic_shape=True)
    if tied is not None and feed.stage.last:
        tied.ds_pipe_replicated = True  # type: ignore[attr-defined]  # the gradient's norm has it once
    return module


def _pair(mesh: Mesh) -> Any:
    """The process group of our pipeline's first and last stage; of all stages, where there are two."""
    if mesh.inner_size == 2:
        return mesh.inner_group
    pairs = [(group, dist.new_group([group[0], group[-1]])) for group in mesh.groups]
    return next(pair for group, pair in pairs if mesh.ranks.rank in group)
