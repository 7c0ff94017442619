"""Options are scored as in a forward of their own, however many rows and answers one forward has."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluating import evaluation_folder, logprobs_alone, stores_of
from tests.generating import Watching
from velocity.config.sections import ModelConfig
from velocity.distributed.comm import Ranks
from velocity.errors import UserError
from velocity.evaluation.scoring import Asked, Scorer, asked_of, attention_for, pieces_of, scoring_attention
from velocity.inference.hf_engine import TransformersEngine
from velocity.models import attention
from velocity.models.judge import Judge
from velocity.models.load import load_model


class Rows:
    def __init__(self, asked: list[Asked]) -> None:
        self.waiting = deque(asked)

    def peek(self) -> Asked | None:
        return self.waiting[0] if self.waiting else None

    def pop(self) -> Asked:
        return self.waiting.popleft()


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evaluation_folder(tmp_path_factory.mktemp("scoring"), 8)


def engine_of(folder: Path, name: str = attention.NAME) -> TransformersEngine:
    model: Any = load_model(folder / "model", ModelConfig(path="m"), "fp32", attention_name=name)
    return TransformersEngine(model.eval(), Ranks())


@pytest.mark.parametrize("limit", [64, 4096])  # a row or two a forward, and all of them
@pytest.mark.parametrize(("name", "share"), [(attention.NAME, True), (attention.NAME, False), ("sdpa", False)])
def test_each_options_log_probability_is_that_of_a_forward_of_its_own(
    folder: Path, limit: int, name: str, *, share: bool
):
    stores = stores_of(folder)
    scorer = Scorer(engine_of(folder, name), limit, share=share)
    for kind in ("choices", "texts"):
        items = [stores[kind][row] for row in range(len(stores[kind]))]
        asked = [asked_of(row, item, share=share) for row, item in enumerate(items)]
        found = {one.row: judged for one, judged in scorer.run(Rows(asked), Watching())}
        for row, item in enumerate(items):
            alone = logprobs_alone(folder / "model", item)
            assert [one.logprob for one in found[row]] == pytest.approx(alone, abs=1e-4)
            assert [one.tokens for one in found[row]] == [int(option.trained.sum()) for option in item.options]


def test_what_follows_a_prompt_is_likeliest_where_it_is_what_the_model_would_say(folder: Path):
    engine = engine_of(folder)
    prompt = [5, 9, 40]
    with torch.inference_mode():
        likeliest = int(engine.model(torch.tensor([prompt]), position_ids=torch.arange(3)[None],
                                     **_bounds(3)).logits[0, -1].argmax())  # fmt: skip
    options = [(np.array([token], dtype=np.int32), np.ones(1, dtype=np.uint8)) for token in (likeliest, likeliest + 1)]
    asked = Asked(0, pieces_of(prompt, options, share=True))
    ((_, judged),) = Scorer(engine, 64, share=True).run(Rows([asked]), Watching())
    assert [one.likeliest for one in judged] == [True, False]


def _bounds(length: int) -> dict[str, Any]:
    ends = torch.tensor([0, length], dtype=torch.int32)
    return {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": length, "max_length_k": length}


def test_answers_that_share_a_prompt_take_its_tokens_once():
    options = [(np.zeros(4, dtype=np.int32), np.ones(4, dtype=np.uint8))] * 3
    prompt = [1] * 10
    apart, together = (Asked(0, pieces_of(prompt, options, share=share)).tokens for share in (False, True))
    # an answer's last token is no input: 10 + 3 each; then 9 of the prompt's tokens stand in the first piece alone
    assert (apart, together) == (3 * 13, 13 + 2 * 4)


def test_a_model_whose_packed_rows_see_each_other_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    scorer = Scorer(engine_of(folder), 64, share=True)
    scorer.check()
    leaking = scorer._judged

    def leaks(batch: Any) -> torch.Tensor:
        judged_2BS = leaking(batch)
        return judged_2BS + batch.input_ids_BS[0, 0].float()

    monkeypatch.setattr(scorer, "_judged", leaks)
    with pytest.raises(UserError, match="packed sequences see each other"):
        scorer.check()


def test_the_attention_that_scores_is_there_for_a_while(folder: Path):
    model = engine_of(folder, "sdpa").model
    with scoring_attention(model, attention_for("auto")):
        assert model.config._attn_implementation == attention.NAME
    assert model.config._attn_implementation == "sdpa"
    assert attention_for("eager") == "eager"


@pytest.mark.parametrize(("limit", "together"), [(400, True), (150, False)])  # rows have 116 to 187 tokens
def test_a_forward_has_no_more_tokens_than_it_may_unless_one_row_alone_has_more(
    folder: Path, monkeypatch: pytest.MonkeyPatch, limit: int, *, together: bool
):
    store = stores_of(folder)["choices"]
    asked = [asked_of(row, store[row], share=True) for row in range(len(store))]
    scorer, taken = Scorer(engine_of(folder), limit, share=True), []
    judge = scorer._judged

    def noted(batch: Any) -> torch.Tensor:
        taken.append(batch.tokens)
        return judge(batch)

    monkeypatch.setattr(scorer, "_judged", noted)
    assert len(list(scorer.run(Rows(asked), Watching()))) == len(asked)
    assert sum(taken) == sum(one.tokens for one in asked)
    assert (len(taken) < len(asked)) == together
    assert all(tokens <= limit or tokens in {one.tokens for one in asked} for tokens in taken)


def test_an_architecture_that_does_more_behind_its_head_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Judge, "head", lambda self, hidden_ND: 2 * self.model.get_output_embeddings()(hidden_ND))
    with pytest.raises(UserError, match="this architecture's logits are not its head's"):
        Scorer(engine_of(folder), 64, share=True).check()
