"""Rates, intervals, and the failures that are in none of them."""

from __future__ import annotations

import pytest

from dagger_exp.evaluation.metrics import Rate, evaluation_metrics, wilson
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.types import Actor, Episode, StopReason, Turn


def turn(valid: bool = True) -> Turn:
    return Turn(0, Actor.STUDENT, "", [1], True, "test", [2], valid=valid)


def episodes(**counts: int) -> list[Episode]:
    """Return episodes of each stop reason: two malformed turns where infrastructure failed, else a good one."""
    return [
        Episode(0, 0, "t", reason, [turn(valid=False)] * 2 if reason.is_infrastructure else [turn()])
        for reason in map(StopReason, counts)
        for _ in range(counts[reason.value])
    ]


@pytest.mark.parametrize(
    ("num_hits", "num_trials", "low", "high"),
    [
        (0, 10, 0.0, 0.277533),
        (5, 10, 0.236593, 0.763407),
        (10, 10, 0.722467, 1.0),
        (1, 100, 0.001767, 0.054486),
        (150, 200, 0.685659, 0.804918),
    ],
)
def test_wilson_intervals(num_hits: int, num_trials: int, low: float, high: float) -> None:
    assert wilson(num_hits, num_trials) == pytest.approx((num_hits / num_trials, low, high), abs=1e-5)


def test_the_interval_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == Rate(0.0, 0.0, 1.0)


def test_failures_of_infrastructure_are_counted_and_in_no_rate() -> None:
    metrics = evaluation_metrics(episodes(solved=60, unsolved=20, max_turns=10, context=8, engine=1, sandbox=1))
    assert metrics["eval/num_tasks"] == 100
    assert metrics["eval/num_failed"] == 2
    assert metrics["eval/success_rate"] == 60 / 98
    assert (metrics["eval/success_low"], metrics["eval/success_high"]) == wilson(60, 98)[1:]
    assert metrics["eval/submission_rate"] == 80 / 98
    assert metrics["eval/malformed_rate"] == 0.0
    assert metrics["eval/turns_per_episode"] == 1.0


@pytest.mark.parametrize(("num_failed", "has_rate"), [(0, True), (2, True), (3, False), (100, False)])
def test_more_than_two_percent_of_failures_leave_no_success_rate(num_failed: int, has_rate: bool) -> None:
    metrics = evaluation_metrics(episodes(solved=100 - num_failed, timeout=num_failed))
    rates = {"eval/success_rate", "eval/success_low", "eval/success_high"}
    assert rates & set(metrics) == (rates if has_rate else set())
    assert metrics["eval/num_failed"] == num_failed


def test_malformed_turns_are_a_share_of_turns() -> None:
    mixed = [Episode(0, 0, "t", StopReason.UNSOLVED, [turn(), turn(valid=False), turn(), turn()])]
    assert evaluation_metrics(mixed)["eval/malformed_rate"] == 0.25


def test_the_metrics_of_no_episode_are_zero() -> None:
    assert set(evaluation_metrics([]).values()) == {0}


def test_every_round_has_the_count_of_every_stop_reason() -> None:
    counts = {"solved": 3, "max_turns": 2, "loop": 1, "teacher": 1}
    for split, metrics in (("eval", evaluation_metrics), ("rollout", rollout_metrics)):
        found = {name: value for name, value in metrics(episodes(**counts)).items() if "/num_stop_" in name}
        assert found == {f"{split}/num_stop_{reason.value}": counts.get(reason.value, 0) for reason in StopReason}
        assert found.keys() <= metrics([]).keys()
