"""DeepSpeed with ZeRO 0 to 3. It knows no objective and no data set."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from velocity.batch import Batch
from velocity.distributed import comm, tensor
from velocity.distributed.engine import Loss, Objective, StepStats, learn_one_by_one, set_rate
from velocity.distributed.flats import Flat, Known, named, refresh, scaler_of, whole_flats, zero_flats
from velocity.distributed.gradients import clip_or_drop
from velocity.distributed.mesh import Mesh


class DeepSpeedEngine:
    """A scorer under deepspeed.initialize."""

    def __init__(
        self,
        scorer: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: Mapping[str, Any],
        mesh: Mesh,
        clipping: float,
    ) -> None:
        comm.prepare_deepspeed()
        import deepspeed

        self.split = "tensor_parallel" in config
        mpu = tensor.tell_deepspeed(mesh, tensor=self.split)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.engine: Any = deepspeed.initialize(model=scorer, optimizer=optimizer, config=dict(config), mpu=mpu)[0]
        self.mesh, self.scorer, self.device = mesh, scorer, mesh.ranks.device
        self.stage: int = config["zero_optimization"]["stage"]
        self.partly = not all(parameter.requires_grad for parameter in scorer.parameters())
        self._stats = StepStats(0.0, skipped=False)
        self.managed: bool = config.get("managed_gradient_accumulation", True)  # it asks which batch is a step's last
        if config.get("compile", {}).get("deepcompile"):
            self.engine.compile()
        if self.stage == 0 and mesh.ranks.world_size == 1:
            # Without ZeRO it copies all gradients into one buffer and back, even where there is nobody to add up with.
            self.engine.enable_backward_allreduce = False
        if self.stage == 0:
            # Stage 0 reduces the gradients inside its step and tells no norm: we look between the two.
            optimizer.register_step_pre_hook(lambda *_: self._before_step(clipping))

    def _before_step(self, clipping: float) -> None:
        self._stats = clip_or_drop(self.scorer.parameters(), clipping)

    def __call__(self, batch: Batch) -> Tensor:
        """Return logps_BS: the log-probability of each label."""
        logps_BS: Tensor = self.engine(*batch.inputs(self.device))
        return logps_BS

    def train(self, mode: bool) -> None:
        """Dropout on or off."""
        self.engine.train(mode)

    def learn(
        self, objective: Objective, batches: Sequence[Batch], units: int, learning_rate: float
    ) -> tuple[list[Loss], StepStats]:
        """One optimizer step; return each batch's loss."""
        if not self.managed:
            return learn_one_by_one(self, objective, batches, units, learning_rate)
        losses = []
        for batch in batches:
            self.engine.set_gradient_accumulation_boundary(batch is batches[-1])
            loss = objective(self, batch)
            self.backward(loss.total / units)
            losses.append(loss)
        return losses, self.step(learning_rate)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient."""
        # DeepSpeed averages over its data-parallel ranks; the loss is already divided by the global units: undo it.
        self.engine.backward(loss * self.engine.dp_world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepStats:
        """Clip, update, forget the gradients."""
        set_rate(self.engine.optimizer.param_groups, learning_rate)
        if backup := getattr(self.engine.optimizer, "backup_optimizer", None):
            # it steps what offload.ratio leaves on the device; its first group is one of its own
            set_rate(backup.param_groups, learning_rate)
        self.engine.step()
        if self.stage == 0:
            return self._stats
        norm = self.engine.get_global_grad_norm()
        return StepStats(float(norm), skipped=not self.engine.was_step_applied())

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum over the ranks, of those that share a model and its batches one."""
        return self.mesh.sum_over_data(value.to(self.device))

    def any_rank(self, flag: bool) -> bool:
        """True, on every rank, where it is on one."""
        return bool(comm.sum_over_ranks(torch.tensor(float(flag), device=self.device)) > 0)

    def flats(self, *, start: bool = False) -> Iterator[Sequence[Flat]]:
        """Each rank's part, or whole parameters at stage 0; what waits on a disk a group at a time."""
        names = named(self.scorer)
        if self.stage == 0:
            return whole_flats(self.engine.optimizer, names, self.mesh, start=start)
        return zero_flats(self.engine.optimizer, Known(names, self.mesh, self._saves), start=start)

    def _saves(self, parameter: Tensor) -> bool:
        """False for what another rank of our tensor group has whole, too."""
        return not self.split or self.mesh.inner_rank == 0 or tensor.split_of(parameter) is not None

    def refresh(self) -> None:
        """The weights that compute, in 16 bit or in parts, are those of the flat tensors."""
        if self.stage > 0:
            refresh(self.engine.optimizer)

    @property
    def scaler(self) -> dict[str, Any]:
        """What fp16's dynamic loss scale has learned."""
        return scaler_of(self.engine)

    def weights(self) -> Mapping[str, Tensor]:
        """Return the whole weights of what is trained, on rank 0."""
        import deepspeed

        whole: dict[str, Tensor] = {}
        saved = self.scorer.state_dict().keys()  # some buffers are part of a model, most are not
        named = [*self.scorer.named_parameters(), *self.scorer.named_buffers()]
        for name, part in [one for one in named if one[1].requires_grad or not self.partly]:
            with deepspeed.zero.GatheredParameters([part]):
                value = tensor.whole(part, self.mesh)
                if self.mesh.ranks.first and name in saved:
                    whole[name.removeprefix("model.")] = value.cpu().clone()
        return whole
