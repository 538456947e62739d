"""The teacher that a world brings, and its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dagger_exp.envs.repo_repair import RepoRepair, RepoRepairEnv
from dagger_exp.errors import ConfigError, PolicyError
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.types import Key, State

WORLD = RepoRepair()
NUM_STATES = 1000


def state(index: int) -> State:
    return State([], [], Key(0, 0, "t", index))


def env() -> RepoRepairEnv:
    return WORLD.make(WORLD.tasks("train")[0])


def answers(policy: ScriptedPolicy) -> list[str]:
    async def ask() -> list[str]:
        return [(await policy.act(state(index), env())).message.content for index in range(NUM_STATES)]

    return asyncio.run(ask())


def test_it_answers_as_the_worlds_teacher() -> None:
    assert set(answers(ScriptedPolicy())) == {env().expert_action().content}


def test_it_errs_at_the_rate_it_was_told_and_always_at_the_same_states() -> None:
    given = answers(ScriptedPolicy(error_rate=0.3))
    at_random = [env().random_action(Key(0, 0, "t", index)).content for index in range(NUM_STATES)]
    expert = env().expert_action().content
    assert all(answer in {expert, drawn} for answer, drawn in zip(given, at_random, strict=True))
    wrong = sum(answer != expert for answer in given) / sum(drawn != expert for drawn in at_random)
    assert wrong == pytest.approx(0.3, abs=0.05)
    assert answers(ScriptedPolicy(error_rate=0.3)) == given
    assert answers(ScriptedPolicy(error_rate=1.0)) == at_random


def test_a_world_without_a_teacher_is_named() -> None:
    mute: Any = object()
    with pytest.raises(PolicyError, match="no teacher of its own"):
        asyncio.run(ScriptedPolicy().act(state(0), mute))


@pytest.mark.parametrize("error_rate", [-0.1, 1.1])
def test_a_rate_outside_of_zero_to_one_is_refused(error_rate: float) -> None:
    with pytest.raises(ConfigError, match="error_rate"):
        ScriptedPolicy(error_rate=error_rate)
