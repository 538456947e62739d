"""The teacher's log-probabilities of what the student said, at the right tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagger_exp.engines.scoring import score
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.protocols import Scores
from dagger_exp.rollout.scored import scored
from dagger_exp.store.schema import episode_to_rows
from dagger_exp.store.store import Store
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Actor, Episode, StopReason, Turn

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
        return Scores([-float(place) for place in places], tops, [[-0.5] * num_top for _ in places])


TURNS = [
    turn(0, S, [1, 2, 3], [4, 5]),
    turn(1, T, [6], [7]),
    turn(2, S, [8], [9, 10, 11]),
    turn(3, S, [1, 2, 12], [13], branch=True),
]


def test_each_token_of_the_student_gets_its_own_value_and_a_branch_begins_anew() -> None:
    teacher = Echo()
    done = asyncio.run(scored(TURNS, teacher, num_top=0))
    assert teacher.asked == [[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], [1, 2, 12, 13]]
    assert [one.teacher_logprobs for one in done] == [[-3.0, -4.0], (), [-8.0, -9.0, -10.0], [-3.0]]


def test_the_likeliest_tokens_lie_one_place_after_the_other() -> None:
    done = asyncio.run(scored(TURNS, Echo(), num_top=2))
    assert done[0].teacher_top_ids == [4, 4, 5, 5]
    assert done[2].teacher_top_logprobs == [-0.5] * 6


def test_they_are_kept_as_16_bit_numbers(tmp_path: Path) -> None:
    turns = asyncio.run(scored(TURNS[:1], Echo(), num_top=1))
    turns[0] = replace(turns[0], teacher_logprobs=[-0.1, -2.0])
    episode = Episode(0, 0, "t", StopReason.SOLVED, turns)
    store = Store(tmp_path, "run")
    store.commit(episode)
    store.close_round(0, store.rows(0, 1), {})
    [found] = store.read(0).episodes([0])
    assert found.turns[0].teacher_logprobs == (float(np.float16(-0.1)), -2.0)
    assert episode_to_rows("run", found) == episode_to_rows("run", episode)


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
