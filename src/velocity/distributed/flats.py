"""Where each parameter's full-precision weight and optimizer state lie: in flat tensors, in stretches.

An optimizer steps on flat tensors: a parameter itself, or under ZeRO a rank's part of many parameters laid end to end
(arXiv 1910.02054, section 5). A stretch of a parameter is named by the parameter and a range of it, which means the
same at any number of ranks and any stage. It knows no file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from velocity.distributed.mesh import Mesh
from velocity.distributed.tensor import split_of

WEIGHT, STEP = "weight", "step"
Names: TypeAlias = Mapping[int, str]  # of parameters, by id


@dataclass(frozen=True)
class Part:
    """The rows or columns of a matrix that is split over ranks: `first` up to `last` along `axis`."""

    axis: int
    first: int
    last: int


@dataclass(frozen=True)
class Span:
    """A stretch of a parameter, and where it lies in a flat tensor.

    `start` counts the values of the parameter, or of the part of it that the rank holds, laid out flat.
    """

    name: str
    shape: tuple[int, ...]  # of the parameter, or of the part
    part: Part | None
    start: int
    at: int
    count: int
    ours: bool = True  # False where another rank saves the same


@dataclass(frozen=True)
class Flat:
    """A tensor that an optimizer steps on, with its state. `whole` are the spans of state that spans whole parameters.

    (Muon under ZeRO 1 and 2 keeps the momentum of each matrix whole that it has any part of.)
    """

    tensor: Tensor
    state: dict[str, Any]
    spans: Sequence[Span]
    whole: Sequence[Span] = field(default=())


def named(module: nn.Module) -> Names:
    """The trained parameters' names in the model that the scorer wraps."""
    pairs = ((name.removeprefix("model."), parameter) for name, parameter in module.named_parameters())
    return {id(parameter): name for name, parameter in pairs if parameter.requires_grad}


@dataclass(frozen=True)
class Known:
    """The parameters that an engine trains: their names, and whether a copy of one is for this rank to save."""

    names: Names
    mesh: Mesh
    ours: Callable[[Tensor], bool] = lambda parameter: True


def whole_flats(optimizer: Any, names: Names, mesh: Mesh | None, *, start: bool) -> Iterator[Sequence[Flat]]:
    """Those of an optimizer that steps on whole parameters, which every rank has; the ranks save them in turn."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if start:
        _step_nowhere(optimizer.param_groups, parameters, optimizer.step)
    rank, size = (mesh.ranks.rank, mesh.ranks.world_size) if mesh else (0, 1)
    yield [
        Flat(parameter.data, optimizer.state[parameter], [Span(
            names[id(parameter)], tuple(parameter.shape), None, 0, 0, parameter.numel(), number % size == rank
        )])
        for number, parameter in enumerate(parameters)
    ]  # fmt: skip


def zero_flats(zero: Any, known: Known, *, start: bool) -> Iterator[Sequence[Flat]]:
    """Those of DeepSpeed's ZeRO optimizer of any stage; together the ones that are in memory at the same time."""
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        return _zero_3(zero, known, start=start)
    return _zero_1_2(zero, known, start=start)


def _zero_1_2(zero: Any, known: Known, *, start: bool) -> Iterator[Sequence[Flat]]:
    # DeepSpeed has another class for bf16 weights whose gradients are added up in fp32
    tensors = getattr(zero, "single_partition_of_fp32_groups", None) or zero.fp32_groups_flat_partition
    if start:
        _step_nowhere(zero.optimizer.param_groups, tensors, zero.optimizer.step)
    flats = []
    for tensor, parameters in zip(tensors, zero.bit16_groups, strict=True):
        state, here = zero.optimizer.state[tensor], [one for one in parameters if one._hp_mapping is not None]
        spans, whole, before = [], [], 0
        for parameter in here:
            ours, theirs = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            spans.append(_span(parameter, known, ours.start, theirs.start, ours.numel))
            whole.append(_span(parameter, known, 0, before, parameter.numel(), first=ours.start == 0))
            before += parameter.numel()
        if start and getattr(parameters[0], "use_muon", False) and not zero.cpu_offload:
            state.setdefault("momentum_buffer", torch.zeros(before, dtype=tensor.dtype, device=tensor.device))
        flats.append(Flat(tensor.data, state, spans, whole))
    yield flats


def _zero_3(zero: Any, known: Known, *, start: bool) -> Iterator[Sequence[Flat]]:
    flats: list[Flat] = []
    for number, (tensor, parameters) in enumerate(
        zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    ):
        swapped = zero._swappable_optimizer_subgroup(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(number)
        if start:
            rates = [*zero.optimizer.param_groups, *_backup(zero).get("groups", [])]
            _step_nowhere(rates, [tensor], partial(zero._optimizer_step, number))
        state = zero.optimizer.state.get(tensor) or _backup(zero).get("state", {}).get(tensor) or {}
        flat = Flat(tensor.data, state, list(_of_partitions(zero, parameters, known)))
        if not swapped:
            flats.append(flat)
            continue
        yield [flat]
        _put_back(zero, number, changed=start)
    if flats:
        yield flats


def _put_back(zero: Any, number: int, *, changed: bool) -> None:
    """The group waits on its disk again."""
    if changed:
        zero._optimizer_states_and_gradient_swap_out(number)
    else:
        zero._release_swap_buffers(number)


def _of_partitions(zero: Any, parameters: Iterable[Any], known: Known) -> Iterator[Span]:
    """Each parameter is cut into as many even pieces as there are ranks, the last ones padded."""
    for parameter in parameters:
        _, at, count = zero.grad_position[zero.get_param_id(parameter)]
        start = count * zero._get_param_partition_rank(parameter)
        if (real := min(count, parameter.ds_numel - start)) > 0:
            yield _span(parameter, known, start, at, real)


def _backup(zero: Any) -> dict[str, Any]:
    """The optimizer of what `offload.ratio` leaves on the device."""
    backup = getattr(zero, "backup_optimizer", None)
    return {} if backup is None else {"groups": backup.param_groups, "state": backup.state}


def _span(parameter: Any, known: Known, start: int, at: int, count: int, *, first: bool = True) -> Span:
    layout, mesh = split_of(parameter), known.mesh
    part = None
    if layout is not None:
        axis, sizes = layout
        before = sum(sizes[: mesh.inner_rank])
        part = Part(axis, before, before + sizes[mesh.inner_rank])
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    return Span(known.names[id(parameter)], shape, part, start, at, count, first and known.ours(parameter))


def refresh(zero: Any) -> None:
    """What computes are the weights that the flat tensors hold."""
    if not hasattr(zero, "fp32_partitioned_groups_flat"):
        zero.update_lp_params()
        return
    zero._partition_all_parameters()  # what is still gathered is the old
    for number in range(len(zero.fp16_groups)):
        swapped = zero._swappable_optimizer_subgroup(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(number)
        zero._reassign_or_swap_out_partitioned_parameters(number)
        if swapped:
            _put_back(zero, number, changed=False)
    if zero.persistent_parameters:  # those that stay gathered
        zero.persistent_parameters[0].all_gather(zero.persistent_parameters)


def scaler_of(engine: Any) -> dict[str, Any]:
    """The dynamic loss scaler of a DeepSpeed engine in fp16, as its own attributes; else nothing."""
    return vars(engine.optimizer.loss_scaler) if engine.fp16_enabled() else {}


@torch.no_grad()
def _step_nowhere(groups: Iterable[dict[str, Any]], tensors: Sequence[Any], step: Callable[[], Any]) -> None:
    """The optimizer has its state for these tensors, all zero: a step at rate 0 on gradients of 0 changes nothing."""
    rates = [(group, group["lr"]) for group in groups]
    kept = [tensor.grad for tensor in tensors]
    for group, _ in rates:
        group["lr"] = 0.0
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.zero_()
    step()
    for tensor, gradient in zip(tensors, kept, strict=True):
        tensor.grad = gradient
    for group, rate in rates:
        group["lr"] = rate


def values_of(flat: Flat) -> Iterator[tuple[str, Tensor, Sequence[Span]]]:
    """Each kind of value of a flat tensor, laid out flat, and where stretches of parameters lie in it.

    Weights, the state that there is for every value, and the number of steps, which stands for each parameter whose
    first value is here. State in 8 bit comes in fp32.
    """
    yield WEIGHT, flat.tensor.view(-1), flat.spans
    begun = [span for span in flat.spans if span.start == 0]
    for key, value in flat.state.items():
        if key == STEP:
            steps = torch.tensor([int(value)] * len(begun))
            yield key, steps, [_counted(span, number) for number, span in enumerate(begun)]
        elif _is_state(key, value):
            yield key, _decoded(flat.state, key).view(-1), _spans_for(flat, value)


def take(flat: Flat, read: Callable[[str, Span], Tensor]) -> None:
    """The flat tensor, and the state that it has already, hold what `read` gives for a kind of value and a span."""
    for span in flat.spans:
        flat.tensor.view(-1)[span.at : span.at + span.count] = read(WEIGHT, span).to(flat.tensor)
    for key, value in list(flat.state.items()):
        if key == STEP:
            steps = [int(read(key, _counted(span, 0))) for span in flat.spans]
            count = max(steps, default=0)  # one for all that lie together
            flat.state[key] = torch.full_like(value, count) if isinstance(value, Tensor) else count
        elif _is_state(key, value):
            whole = _decoded(flat.state, key).view(-1)
            for span in _spans_for(flat, value):
                whole[span.at : span.at + span.count] = read(key, span).to(whole)
            _encode(flat.state, key, whole)


def _counted(span: Span, at: int) -> Span:
    """The same for a number that belongs to the parameter as a whole."""
    return Span(span.name, (1,), None, 0, at, 1, span.ours)


def _spans_for(flat: Flat, value: Tensor) -> Sequence[Span]:
    if value.numel() == flat.tensor.numel():
        return flat.spans
    if flat.whole and value.numel() == sum(span.count for span in flat.whole):
        return flat.whole
    (span,) = flat.spans  # Adafactor's rows and columns of one matrix
    return [Span(span.name, tuple(value.shape), None, 0, 0, value.numel(), span.ours)]


# bitsandbytes keeps state in 8 bit with a scale for every block of values: arXiv 2110.02861, section 2.1
BLOCK, SCALE, CODE = 256, "absmax", "qmap"
BLOCKS_AT_ONCE = 1 << 16


def _is_state(key: str, value: Any) -> bool:
    return isinstance(value, Tensor) and not key.startswith((SCALE, CODE))


def _decoded(state: Mapping[str, Any], key: str) -> Tensor:
    """The state itself, or in fp32 what its 8 bits stand for."""
    value: Tensor = state[key]
    scale = state.get(key.replace("state", SCALE))
    if scale is None or value.dtype != torch.uint8:
        return value
    from bitsandbytes.functional import dequantize_blockwise

    code = state[key.replace("state", CODE)]
    return dequantize_blockwise(value, absmax=scale, code=code, blocksize=BLOCK).float()


def _encode(state: dict[str, Any], key: str, whole: Tensor) -> None:
    """The state is what `whole` says; nothing to do where that is the state itself."""
    value: Tensor = state[key]
    if value.dtype != torch.uint8:
        return
    code, scale = state[key.replace("state", CODE)], state[key.replace("state", SCALE)]
    for first in range(0, len(scale), BLOCKS_AT_ONCE):
        piece = slice(first * BLOCK, (first + BLOCKS_AT_ONCE) * BLOCK)
        numbers, scales = quantised(whole[piece].float(), code)
        value.view(-1)[piece] = numbers
        scale[first : first + BLOCKS_AT_ONCE] = scales


def quantised(values: Tensor, code: Tensor) -> tuple[Tensor, Tensor]:
    """The number of each value's code, and each block's scale: what decodes to these values, where anything does.

    bitsandbytes' own function takes the largest value for the scale; but a block whose largest value is negative does
    not decode to that: the lowest code is above -1.
    """
    blocks = torch.nn.functional.pad(values, (0, -len(values) % BLOCK)).view(-1, BLOCK)
    lowest = blocks.amin(1) / code.min() if code.min() < 0 else torch.zeros(len(blocks), device=values.device)
    scales = torch.maximum(blocks.amax(1) / code.max(), lowest)
    numbers = _nearest(blocks, scales, code)
    for way in (-torch.inf, torch.inf):  # the division may have been rounded to a neighbour
        lost = ((code[numbers] * scales[:, None]) != blocks).any(1)
        others = torch.nextafter(scales, torch.full_like(scales, way))
        theirs = _nearest(blocks, others, code)
        better = lost & ((code[theirs] * others[:, None]) == blocks).all(1)
        scales, numbers = torch.where(better, others, scales), torch.where(better[:, None], theirs, numbers)
    return numbers.to(torch.uint8).view(-1)[: len(values)], scales


def _nearest(blocks: Tensor, scales: Tensor, code: Tensor) -> Tensor:
    between = (code[1:] + code[:-1]) / 2  # codes are in ascending order
    return torch.bucketize(blocks / scales.clamp(min=torch.finfo(scales.dtype).tiny)[:, None], between)
