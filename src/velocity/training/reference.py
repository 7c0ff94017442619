"""What the reference makes of every answer: computed once, before training, and kept for later runs.

The reference is the model that training starts from, so its engine is the one that trains; nothing of it is left in
memory afterwards. A file of scores says what they were computed from, and is refused where that is something else.

Shape letters: N sequences of a corpus.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from velocity.batch import Batch
from velocity.data.corpus import Corpus
from velocity.data.fingerprint import digest
from velocity.data.layout import Layout
from velocity.data.loader import MicroBatches, Share, pack_within, split
from velocity.data.pack import Indices
from velocity.distributed import comm, pulse
from velocity.distributed.engine import TrainEngine
from velocity.errors import InterruptedRun, UserError
from velocity.objectives.answers import answer_logps, answers_of
from velocity.objectives.objective import Policy

Scores = NDArray[np.float32]
KEPT_EVERY = 64  # micro-batches of a rank: what is lost at most when the process is killed


@dataclass(frozen=True)
class ScoreCache:
    """Where scores are kept, and all that they depend on but the data: the model's weights and how it computes."""

    folder: Path
    facts: Mapping[str, str]
    first: bool  # on the rank that reads and writes

    def facts_of(self, corpus: Corpus, layout: Layout) -> dict[str, str]:
        """What the scores of a corpus depend on; the data are their token ids, so the template is among them."""
        data = digest([store.stats["content"] for store in corpus.stores])
        return {**self.facts, "data": data, "layout": layout.name}

    def path(self, facts: Mapping[str, str]) -> Path:
        """The file of scores that depend on these facts."""
        return self.folder / f"{digest(dict(facts))}.safetensors"

    def read(self, corpus: Corpus, layout: Layout) -> Scores:
        """The scores of a corpus, the same on every rank; not a number for what was not scored yet.

        UserError, on every rank, where the file holds others.
        """
        facts, count = self.facts_of(corpus, layout), len(corpus.lengths)
        path = self.path(facts)
        found: Any = None
        if self.first:
            try:
                found = _read(path, facts, count) if path.is_file() else _nothing(count)
            except UserError as error:
                found = error
        found = comm.from_first(found)
        if isinstance(found, UserError):
            raise found
        scores: Scores = found
        return scores

    def write(self, corpus: Corpus, layout: Layout, scores: Scores) -> None:
        """The scores lie in a file of their own, which appears whole."""
        if self.first:
            facts = self.facts_of(corpus, layout)
            path = self.path(facts)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file({"scores": scores}, temporary, metadata=facts)
            temporary.chmod(0o644)
            temporary.replace(path)


def _nothing(count: int) -> Scores:
    return np.full((count, 2), np.nan, dtype=np.float32)


def _read(path: Path, facts: Mapping[str, str], count: int) -> Scores:
    fix = "delete the file; the next run computes it again"
    try:
        with safe_open(path, framework="numpy") as file:
            said, scores = file.metadata() or {}, file.get_tensor("scores")
    except (SafetensorError, OSError) as error:
        raise UserError(f"the reference's scores cannot be read: {error}", str(path), fix) from None
    other = [name for name, value in facts.items() if said.get(name) != value]
    if other or scores.shape != (count, 2):
        what = f"these scores are of another reference: its {' and '.join(other) or 'number of records'} differs"
        raise UserError(what, str(path), fix)
    return np.array(scores, dtype=np.float32)


@dataclass(frozen=True)
class ReferenceScorer:
    """Scores whole corpora with the reference, every record on one rank."""

    policy: Policy
    engine: TrainEngine
    layout: Layout
    share: Share
    capacity: int | None
    cache: ScoreCache
    stopping: Callable[[], bool]

    def add_to(self, corpus: Corpus, needed: Indices) -> None:
        """The corpus knows its reference's scores of the records that are needed: from the cache, or scored now.

        They are kept after every few batches. InterruptedRun, on every rank, where one of them is asked to stop.
        """
        scores_N2 = corpus.reference_N2 = self.cache.read(corpus, self.layout)
        missing = needed[np.isnan(scores_N2[needed]).any(axis=1)]
        if not len(missing):
            return
        if self.cache.first:
            print(f"scoring {len(missing):,} records with the reference, once …", file=sys.stderr, flush=True)
        self.engine.train(False)
        rows = pack_within([missing], self.layout.lengths(corpus), self.capacity)
        batches = split(corpus, rows, self.share, self.layout)
        for start in range(0, len(batches), KEPT_EVERY):
            stopped = self._score(batches[start : start + KEPT_EVERY], scores_N2)
            self.cache.write(corpus, self.layout, scores_N2)
            if stopped:
                raise InterruptedRun("stopped while the reference was scored", fix="run the same command to go on")
        self.engine.train(True)

    @torch.no_grad()
    def _score(self, batches: MicroBatches, scores_N2: Scores) -> bool:
        """The scores of our batches, and of the other ranks', stand in the array.

        True, on every rank, where one of them was asked to stop, and those of the last batches do not.
        """
        stopped, found_N3 = False, torch.zeros(len(scores_N2), 3)  # the two scores, and whether some rank has them
        for rows, batch in zip(batches.parts, batches, strict=True):
            stopped = self.engine.any_rank(self.stopping())
            if stopped:
                break
            pulse.working_on(batch.records)
            scores = score_two(self.policy, batch).cpu()
            if rows:
                found_N3[torch.from_numpy(np.concatenate(rows))] = F.pad(scores, (0, 1), value=1.0)
        whole_N3 = self.engine.sum_over_ranks(found_N3).cpu().numpy()
        scored = whole_N3[:, 2] > 0
        scores_N2[scored] = whole_N3[scored, :2]
        return stopped


def score_two(policy: Policy, batch: Batch) -> torch.Tensor:
    """Two log-probabilities a record: of its chosen and rejected answer, or of its own and the mismatched one."""
    answers, logps_A = answers_of(batch), answer_logps(policy, batch)
    if answers.mismatched is None:
        return logps_A.view(2, -1).T
    return torch.stack([logps_A, answer_logps(policy, answers.mismatched)], dim=1)
