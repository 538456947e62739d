"""Rates and intervals of episodes. A failure of infrastructure is in no rate; it is counted beside."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

from dagger_exp.rollout.metrics import failure_rates, stop_counts
from dagger_exp.types import Episode

MAX_INFRASTRUCTURE_RATE = 0.02
"""An evaluation with a larger share of infrastructure failures has no rate."""


class Rate(NamedTuple):
    """A share with its 95 % Wilson interval."""

    value: float
    low: float
    high: float


def wilson(num_hits: int, num_trials: int) -> Rate:
    """Return a rate with its 95 % interval (Wilson, 1927); (0, 0, 1) of no trial. scipy.stats is slow to import."""
    if num_trials == 0:
        return Rate(0.0, 0.0, 1.0)
    rate, spread = num_hits / num_trials, NormalDist().inv_cdf(0.975) ** 2 / num_trials
    middle, half = rate + spread / 2, math.sqrt(spread * rate * (1 - rate) + spread**2 / 4)
    return Rate(rate, max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread)))


def evaluation_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return how the student does alone, under `eval/`.

    There is no `eval/success_rate` where more than `MAX_INFRASTRUCTURE_RATE` of the episodes failed for reasons that
    are not the student's.
    """
    counted = [episode for episode in episodes if not episode.stop_reason.is_infrastructure]
    num_turns = sum(len(episode.turns) for episode in counted)
    metrics = {
        "eval/num_tasks": len(episodes),
        "eval/num_failed": len(episodes) - len(counted),
        "eval/turns_per_episode": num_turns / max(1, len(counted)),
        **failure_rates("eval", counted),
        **stop_counts("eval", episodes),
    }
    if counted and len(episodes) - len(counted) <= MAX_INFRASTRUCTURE_RATE * len(episodes):
        rate = wilson(sum(episode.solved for episode in counted), len(counted))
        metrics |= {"eval/success_rate": rate.value, "eval/success_low": rate.low, "eval/success_high": rate.high}
    return metrics
