"""The teacher's log-probabilities of what the student said, at the right tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dagger_exp.engines.scoring import score
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.protocols import Scores
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.scored import scored
from dagger_exp.store.schema import to_table
from dagger_exp.store.store import Store
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Actor, Episode, StopReason, Turn, Usage

S, T = Actor.STUDENT, Actor.TEACHER


def turn(index: int, actor: Actor, context: Sequence[int], response: Sequence[int], *, branch: bool = False) -> Turn:
    return Turn(index, actor, "seen", context, branch or index == 0, "said", response)


class Echo:
    """A teacher whose log-probability of a token is minus its place in what it was given."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        self.asked.append(list(token_ids))
        places = range(1, len(token_ids))
        tops = [[token] * num_top for token in token_ids[1:]]
        values = [-float(place) for place in places]
        return Scores(values, tops, [[-0.5] * num_top for _ in places], Usage(len(token_ids), 1))


TURNS = [
    turn(0, S, [1, 2, 3], [4, 5]),
    turn(1, T, [6], [7]),
    turn(2, S, [8], [9, 10, 11]),
    turn(3, S, [1, 2, 12], [13], branch=True),
]


def test_each_token_of_the_student_gets_its_own_value_and_a_branch_begins_anew() -> None:
    teacher, budget = Echo(), TeacherBudget()
    done = asyncio.run(scored(TURNS, teacher, 0, budget))
    assert budget.in_round == Usage(11 + 4, 2, num_queries=2)
    assert teacher.asked == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 12, 13]]
    assert [one.teacher_logprobs for one in done] == [[-3.0, -4.0], (), [-8.0, -9.0, -10.0], [-3.0]]


def test_nothing_is_asked_about_what_the_teacher_said_last() -> None:
    teacher, last = Echo(), turn(4, T, [14], [15])
    budget = TeacherBudget(tokens_per_round=17)  # what is not asked is not refused, though these are spent
    done = asyncio.run(scored([*TURNS, last, turn(5, T, [1], [2], branch=True)], teacher, 0, budget))
    assert teacher.asked == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 12, 13]]
    assert [one.turn_index for one in done] == list(range(6))


def test_the_likeliest_tokens_lie_one_place_after_the_other() -> None:
    done = asyncio.run(scored(TURNS, Echo(), 2, TeacherBudget()))
    assert done[0].teacher_top_ids == [4, 4, 5, 5]
    assert done[2].teacher_top_logprobs == [-0.5] * 6


def test_they_are_kept_as_16_bit_numbers(tmp_path: Path) -> None:
    turns = asyncio.run(scored(TURNS[:1], Echo(), 1, TeacherBudget()))
    turns[0] = replace(turns[0], teacher_logprobs=[-0.1, -2.0])
    episode = Episode(0, 0, "t", StopReason.SOLVED, turns)
    store = Store(tmp_path, "run")
    store.commit(episode)
    store.close_round(0, 1, {})
    [found] = store.read(0).episodes([0])
    assert found.turns[0].teacher_logprobs == (float(np.float16(-0.1)), -2.0)
    assert to_table("run", [found]).equals(to_table("run", [episode]))


@pytest.mark.parametrize("scaling", [{"logits_scaling": 4.0}, {"final_logit_softcapping": 2.0}, {"logit_scale": 0.1}])
def test_what_a_model_does_to_its_logits_counts(scaling: dict[str, float]) -> None:
    kind = {"logits_scaling": "granite", "final_logit_softcapping": "gemma2", "logit_scale": "cohere"}[
        next(iter(scaling))
    ]
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "vocab_size": 40, "head_dim": 8}
    heads = {
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **heads, **scaling)).eval()
    ids = [5, *range(6, 30)]
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()
    assert score(model, ids).logprobs == pytest.approx(expected, abs=1e-5)


def test_chunks_and_likeliest_tokens_are_those_of_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary = RepoRepair().vocabulary()
    sizes: dict[str, Any] = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32}
    model = from_scratch(vocabulary=vocabulary, tokenizer="words", max_context_tokens=64, seed=0, **sizes).model
    ids = [5, *range(6, 30)]
    whole = score(model, ids, num_top=3)
    monkeypatch.setattr("dagger_exp.engines.scoring.CHUNK", 7)
    parts = score(model, ids, num_top=3)
    assert parts.logprobs == pytest.approx(whole.logprobs)
    assert parts.top_ids == whole.top_ids
    assert len(whole.logprobs) == len(whole.top_ids) == len(ids) - 1
    tails = 1 - np.exp(np.array(whole.top_logprobs)).sum(1)
    assert ((tails > 0) & (tails < 1)).all()
    for value, places, values in zip(whole.logprobs, whole.top_ids, whole.top_logprobs, strict=True):
        assert value <= values[0] + 1e-6
        assert sorted(values, reverse=True) == list(values)
        assert len(set(places)) == 3
