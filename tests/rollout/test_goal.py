"""When a round is full, and how many episodes it still needs."""

from __future__ import annotations

from dagger_exp.rollout.goal import Goal, num_leading
from dagger_exp.store.view import EpisodeSummary
from dagger_exp.types import StopReason


def ended(num_labels: int, reason: StopReason = StopReason.UNSOLVED) -> EpisodeSummary:
    return EpisodeSummary(num_turns=num_labels, num_labels=num_labels, stop_reason=reason, task_id="t")


def test_a_budget_is_full_with_the_episode_that_reaches_it() -> None:
    goal = Goal(num_labels=48)
    assert goal.size({0: ended(24)}) is None
    assert goal.size({0: ended(24), 1: ended(24)}) == 2
    assert goal.size({0: ended(24), 1: ended(25), 2: ended(24)}) == 2
    assert goal.size({0: ended(24), 2: ended(24)}) is None, "episodes count in the order of their indices"
    assert goal.size({0: ended(24), 1: ended(24, StopReason.ENGINE), 2: ended(24)}) == 3


def test_what_is_playing_counts_towards_a_budget() -> None:
    goal = Goal(num_labels=100, expected_labels=20.0)
    assert goal.num_wanted(0, {}) == 5
    assert goal.num_wanted(5, {}, num_playing=5) == 0
    assert goal.num_wanted(2, {0: ended(10), 1: ended(10)}) == 8
    assert goal.num_wanted(4, {0: ended(10), 1: ended(10)}, num_playing=2) == 80 / 15 - 2


def test_the_first_episodes_that_are_done() -> None:
    assert [num_leading(done) for done in ({}, {0: ended(1)}, {1: ended(1)}, {0: ended(1), 2: ended(1)})] == [
        0,
        1,
        0,
        1,
    ]
