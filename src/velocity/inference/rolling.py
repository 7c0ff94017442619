"""A batch whose rows leave as they end and whose places others take. It knows no text, no file and no ZeRO stage.

Each turn is one forward: of newcomers' prompts, or of one more token for all rows. So ranks that hold one model
together stay in step by counting turns alone. What all prompts begin with is computed once.

Shape letters: B rows, Q tokens of a row in this forward, K places in the cache, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from velocity.config.inference import GenerationConfig
from velocity.distributed import pulse
from velocity.distributed.memory import is_out_of_memory
from velocity.inference.cache import RollingCache, own_mask, plain_cache, rolls, select_rows
from velocity.inference.engine import Engine, Step
from velocity.inference.request import Completion, Finish, Queue, Request, Watch, uniform
from velocity.inference.sampling import Sampler, finite, logps_of

DROP_SHARE = 8  # finished rows are dropped once they are an eighth of the batch: dropping copies the others
ADMIT_SHARE = 4  # others join once a quarter of the places is free: joining copies all
GROW_EVERY = 32  # turns without an error, after which a batch that was halved grows again by a quarter


@dataclass(frozen=True)
class Limits:
    """What a rank may have at once: rows, places in the cache, and tokens of prompts in one forward."""

    rows: int
    tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Rules:
    """What ends a completion besides its length."""

    ends: frozenset[int]
    stopped: Callable[[Sequence[int]], bool]  # by a text that it has come to


@dataclass
class _Row:
    request: Request
    done: Completion = field(default_factory=Completion)
    alive: bool = True

    @property
    def ids(self) -> list[int]:
        """All tokens so far: more than the prompt's where memory ran out and the row begins again."""
        return [*self.request.ids, *self.done.ids]

    @property
    def length(self) -> int:
        return len(self.request.ids) + len(self.done.ids)

    def end(self, finish: Finish, error: str | None = None) -> None:
        self.alive, self.done.finish, self.done.error = False, finish, error


class RollingBatch:
    """Completes requests on one engine."""

    def __init__(  # noqa: PLR0913 - what decoding depends on
        self,
        engine: Engine,
        config: GenerationConfig,
        limits: Limits,
        rules: Rules,
        longest: int,
        shared: Sequence[int] = (),
    ) -> None:
        """`longest` bounds a prompt with its completion; all prompts begin with the ids `shared`."""
        self.engine, self.config, self.limits, self.rules = engine, config, limits, rules
        self.sampler = Sampler(config)
        self.rolls = rolls(engine.model.config, longest)
        self.shared = list(shared) if self.rolls else []
        self.prefix: RollingCache | None = None
        self.rows_limit, self.quiet = limits.rows, 0
        self.waiting: deque[_Row] = deque()  # whose batch ran out of memory
        self._clear()

    def _clear(self) -> None:
        self.rows: list[_Row] = []
        self.cache: Any = None
        self.real_BK = self._tensor([], torch.bool).view(0, 0)
        self.seen_BV: Tensor | None = None

    @torch.inference_mode()
    def run(self, queue: Queue, watch: Watch) -> Iterator[tuple[Request, Completion]]:
        """Every request of the queue with its completion, as they end; fewer where we are asked to stop."""
        if self.shared:
            self.prefix = RollingCache()
            self._forward([self.shared], self.prefix, self._tensor([[]], torch.bool))
        while True:
            newcomers = self._admit(queue)
            busy, stop = self.engine.any(bool(newcomers or self.rows), watch.stopping())
            if stop or not busy:
                return
            if newcomers or self.rows:
                ended = self._turn(newcomers)
                watch.made(sum(row.alive for row in newcomers or self.rows) + len(ended))
                for row in ended:
                    yield row.request, row.done
            else:
                self.engine.idle()

    def _admit(self, queue: Queue) -> list[_Row]:
        """Rows for the free places; none while few are free, or where rows have to stay together."""
        alive = sum(row.alive for row in self.rows)
        if self.rows and (not self.rolls or alive > self.rows_limit * (ADMIT_SHARE - 1) // ADMIT_SHARE):
            return []
        taken: list[_Row] = []
        longest = 0
        while (row := self._next(queue)) is not None:
            count, longest = len(taken) + 1, max(longest, row.length)
            places = (alive + count) * (max(self.real_BK.shape[1], longest) + self.config.max_new_tokens)
            prompt_tokens = count * (longest - len(self.shared))
            full = alive + count > self.rows_limit or places > self.limits.tokens
            if (full or prompt_tokens > self.limits.prompt_tokens) and (taken or self.rows):
                break
            taken.append(self.waiting.popleft() if self.waiting else _Row(queue.pop()))
        return taken

    def _next(self, queue: Queue) -> _Row | None:
        if self.waiting:
            return self.waiting[0]
        request = queue.peek()
        return None if request is None else _Row(request)

    def _turn(self, newcomers: list[_Row]) -> list[_Row]:
        """The rows that ended by one forward."""
        try:
            ended = self._begin(newcomers) if newcomers else self._go_on()
        except (RuntimeError, MemoryError) as error:
            if not (self.engine.recovers and is_out_of_memory(error)):
                raise
            message = str(error).splitlines()[0]
        else:
            self._grow()
            self._drop()
            return ended
        return self._halve(newcomers, message)  # here the error is gone, and with it what it held

    def _begin(self, newcomers: list[_Row]) -> list[_Row]:
        """The newcomers have their first token, and stand behind the others."""
        pulse.working_on([f"row {row.request.row}" for row in (*newcomers, *self.rows)])
        alike: dict[tuple[int, ...], int] = {}
        of = [alike.setdefault(tuple(row.ids), len(alike)) for row in newcomers]
        head = len(self.shared)
        prompts = [ids[head:] for ids in alike]
        cache: Any = plain_cache(self.engine.model.config)
        if self.rolls:
            cache = RollingCache() if self.prefix is None else self.prefix.copies(len(prompts))
        real_BK = self._tensor([[True] * head] * len(prompts), torch.bool)
        logits_BV, real_BK = self._forward(prompts, cache, real_BK)
        if len(alike) < len(newcomers):
            places_B = self._tensor(of, torch.long)
            logits_BV, real_BK = logits_BV[places_B], real_BK[places_B]
            select_rows(cache, places_B)
        seen_BV = self._seen(newcomers, logits_BV) if self.sampler.remembers else None
        ended = self._extend(newcomers, logits_BV, seen_BV)
        self._join(newcomers, cache, real_BK, seen_BV)
        return ended

    def _go_on(self) -> list[_Row]:
        """Every row has one more token; one that has ended, and is not dropped yet, whichever it was."""
        ids = [[(row.done.ids or row.request.ids)[-1]] for row in self.rows]
        logits_BV, self.real_BK = self._forward(ids, self.cache, self.real_BK, [row.length - 1 for row in self.rows])
        return self._extend(self.rows, logits_BV, self.seen_BV)

    def _forward(
        self, rows: Sequence[Sequence[int]], cache: Any, real_BK: Tensor, first: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """logits_BV behind the rows, aligned at their ends, and what of the cache is real then.

        `first` are the positions of the rows' first tokens; left out, they follow what all of the cache holds.
        """
        longest = max(map(len, rows))
        starts = first or [real_BK.shape[1]] * len(rows)
        padded = [[0] * (longest - len(ids)) + list(ids) for ids in rows]
        positions = [
            [0] * (longest - len(ids)) + list(range(start, start + len(ids)))
            for ids, start in zip(rows, starts, strict=True)
        ]
        real = [[False] * (longest - len(ids)) + [True] * len(ids) for ids in rows]
        real_BK = torch.cat([real_BK, self._tensor(real, torch.bool)], dim=1)
        config = self.engine.model.config
        mask = real_BK.long()
        if self.rolls:
            mask = own_mask(real_BK, longest, self.engine.model.dtype, config._attn_implementation)
        step = Step(self._tensor(padded, torch.long), self._tensor(positions, torch.long), mask, cache)
        return self.engine.forward(step), real_BK

    def _extend(self, rows: Sequence[_Row], logits_BV: Tensor, seen_BV: Tensor | None) -> list[_Row]:
        """Each row that is alive has the token that was chosen for it; those that end by it."""
        drawn = [uniform(row.request.seed, len(row.done.ids)) if self.config.temperature else 0.0 for row in rows]
        tokens_B = self.sampler.choose(logits_BV, seen_BV, self._tensor(drawn, torch.float64))
        tokens_B = self.engine.same(tokens_B)
        if seen_BV is not None:
            seen_BV.scatter_(1, tokens_B[:, None], value=True)
        logps = logps_of(logits_BV, tokens_B).tolist() if self.config.logprobs else []
        tokens, good = tokens_B.tolist(), finite(logits_BV).tolist()
        living = [number for number, row in enumerate(rows) if row.alive]
        for number in living:
            row, done = rows[number], rows[number].done
            if not good[number]:
                row.end("error", "the model's logits are not finite")
                continue
            done.ids.append(tokens[number])
            if logps:
                done.logps.append(logps[number])
            if tokens[number] in self.rules.ends or self.rules.stopped(done.ids):
                row.end("stop")
            elif len(done.ids) >= self.config.max_new_tokens:
                row.end("length")
        return [rows[number] for number in living if not rows[number].alive]

    def _seen(self, rows: Sequence[_Row], logits_BV: Tensor) -> Tensor:
        seen_BV = torch.zeros(logits_BV.shape, dtype=torch.bool, device=logits_BV.device)
        for number, row in enumerate(rows):
            seen_BV[number, self._tensor(row.ids, torch.long)] = True
        return seen_BV

    def _join(self, newcomers: list[_Row], cache: Any, real_BK: Tensor, seen_BV: Tensor | None) -> None:
        """The newcomers stand behind the rows that are there."""
        if not self.rows:
            self.rows, self.cache, self.real_BK, self.seen_BV = list(newcomers), cache, real_BK, seen_BV
            return
        head, length = len(self.shared), max(self.real_BK.shape[1], real_BK.shape[1])
        self.cache.join(cache, head)
        self.real_BK = torch.cat([_widened(real, head, length) for real in (self.real_BK, real_BK)])
        if self.seen_BV is not None and seen_BV is not None:
            self.seen_BV = torch.cat([self.seen_BV, seen_BV])
        self.rows = [*self.rows, *newcomers]

    def _drop(self) -> None:
        """Rows that ended are gone, once they are many; and the places that none of the others needs."""
        living = [number for number, row in enumerate(self.rows) if row.alive]
        if not living:
            self._clear()
        elif (len(self.rows) - len(living)) * DROP_SHARE >= len(self.rows):
            self.rows = [self.rows[number] for number in living]
            rows_B, head = self._tensor(living, torch.long), len(self.shared)
            if self.rolls:
                gap = self.real_BK.shape[1] - max(row.length - 1 for row in self.rows)
                self.cache.select(rows_B, head, gap)
                self.real_BK = torch.cat([self.real_BK[:, :head], self.real_BK[:, head + gap :]], dim=1)
            else:
                select_rows(self.cache, rows_B)
            self.real_BK = self.real_BK[rows_B]
            self.seen_BV = None if self.seen_BV is None else self.seen_BV[rows_B]

    def _grow(self) -> None:
        """After some time without an error, more rows at once than an error has left us."""
        self.quiet += 1
        if self.rows_limit < self.limits.rows and self.quiet % GROW_EVERY == 0:
            self.rows_limit = min(self.limits.rows, self.rows_limit + max(1, self.rows_limit // ADMIT_SHARE))

    def _halve(self, newcomers: list[_Row], message: str) -> list[_Row]:
        """Memory ran out: all rows begin again, half as many at once; one that was alone has failed."""
        rows = [*(row for row in self.rows if row.alive), *newcomers]
        self._clear()
        if self.engine.device.type == "cuda":
            torch.cuda.empty_cache()
        self.quiet = 0
        if len(rows) == 1:
            rows[0].end("error", f"out of memory, alone in its batch: {message}")
            return rows
        self.rows_limit = max(1, len(rows) // 2)
        self.waiting.extendleft(reversed(rows))
        return []

    def _tensor(self, values: Sequence[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=self.engine.device)


def _widened(real_BK: Tensor, head: int, length: int) -> Tensor:
    """Padding stands between the first `head` places and the others, as in a cache that is joined."""
    gap = real_BK.new_zeros((real_BK.shape[0], length - real_BK.shape[1]))
    return torch.cat([real_BK[:, :head], gap, real_BK[:, head:]], dim=1)
