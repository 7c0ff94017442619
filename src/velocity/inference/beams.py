"""Beam search, by transformers' own generate, in batches of prompts of about one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import GenerationConfig as HFGenerationConfig

from velocity.config.inference import GenerationConfig
from velocity.distributed import pulse
from velocity.inference.engine import Engine
from velocity.inference.request import Completion, Queue, Request, Watch
from velocity.inference.rolling import Limits


class BeamSearch:
    """Completes requests on one engine, whole batches at a time; the samples of a row are its best beams."""

    def __init__(self, engine: Engine, config: GenerationConfig, limits: Limits, ends: frozenset[int]) -> None:
        self.engine, self.limits, self.count = engine, limits, config.completions
        self.settings = HFGenerationConfig(
            max_new_tokens=config.max_new_tokens, num_beams=config.beams, num_return_sequences=config.completions,
            do_sample=False, repetition_penalty=config.repetition_penalty, eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0), use_cache=True,
        )  # fmt: skip
        self.beams, self.ends = config.beams, ends

    @torch.inference_mode()
    def run(self, queue: Queue, watch: Watch) -> Iterator[tuple[Request, Completion]]:
        """Every request of the queue with its completion; fewer where we are asked to stop."""
        while True:
            requests = self._take(queue)
            busy, stop = self.engine.any(bool(requests), watch.stopping())
            if stop or not busy:
                return
            # a rank without rows takes part in the others' forwards, with a prompt of one token
            prompts = [request.ids for request in requests[:: self.count]] or [[0]]
            pulse.working_on([f"row {request.row}" for request in requests[:: self.count]])
            pulse.busy("searching with beams")
            found = self._search(prompts)
            pairs = list(zip(requests, found, strict=False))
            watch.made(sum(len(completion.ids) for _, completion in pairs))
            yield from pairs

    def _take(self, queue: Queue) -> list[Request]:
        """All samples of as many rows as are allowed at once, each of which grows in all its beams."""
        taken: list[Request] = []
        longest = 0
        while (request := queue.peek()) is not None:
            rows, longest = (len(taken) // self.count + 1) * self.beams, max(longest, len(request.ids))
            places = rows * (longest + int(self.settings.max_new_tokens or 0))
            if taken and (rows > self.limits.rows or places > self.limits.tokens):
                break
            taken += [queue.pop() for _ in range(self.count)]
        return taken

    def _search(self, prompts: Sequence[Sequence[int]]) -> list[Completion]:
        width = max(map(len, prompts))
        ids = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        real = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        ids_BS, real_BS = (torch.tensor(rows, device=self.engine.device) for rows in (ids, real))
        found_BS: Tensor = self.engine.model.generate(
            input_ids=ids_BS, attention_mask=real_BS, generation_config=self.settings,
            synced_gpus=self.engine.lockstep,
        )  # fmt: skip
        return [self._completion(row) for row in found_BS[:, width:].tolist()]

    def _completion(self, ids: Sequence[int]) -> Completion:
        for place, token in enumerate(ids):
            if token in self.ends:
                return Completion(list(ids[: place + 1]), "stop")
        return Completion(list(ids), "length")
