"""Rates and intervals of episodes. A failure of infrastructure is in no rate; it is counted beside."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

from dagger_exp.errors import DataError
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


def evaluation_metrics(episodes: Sequence[Episode], name: str = "eval") -> dict[str, float]:
    """Return how the student does alone.

    There is no success rate where more than `MAX_INFRASTRUCTURE_RATE` of the episodes failed for reasons that are not
    the student's.

    Args:
        episodes: of the evaluation.
        name: of the evaluation, with which the names of the metrics begin.
    """
    counted = [episode for episode in episodes if not episode.stop_reason.is_infrastructure]
    num_turns = sum(len(episode.turns) for episode in counted)
    metrics = {
        f"{name}/num_tasks": len(episodes),
        f"{name}/num_failed": len(episodes) - len(counted),
        f"{name}/turns_per_episode": num_turns / max(1, len(counted)),
        **failure_rates(name, counted),
        **stop_counts(name, episodes),
    }
    if counted and len(episodes) - len(counted) <= MAX_INFRASTRUCTURE_RATE * len(episodes):
        rate = wilson(sum(episode.solved for episode in counted), len(counted))
        bounds = {f"{name}/success_low": rate.low, f"{name}/success_high": rate.high}
        metrics |= {f"{name}/success_rate": rate.value, **bounds}
    return metrics


def check_rate(metrics: Mapping[str, float], name: str) -> None:
    """Refuse to end with an evaluation that has no success rate; raises `DataError`."""
    if not has_rate(metrics, name):
        raise DataError(
            f"{metrics[f'{name}/num_failed']:g} of {metrics[f'{name}/num_tasks']:g} {name} episodes failed for reasons "
            "of infrastructure, so that there is no success rate: fix what failures.csv names and resume the run; only "
            "they are played again."
        )


def has_rate(metrics: Mapping[str, float], name: str) -> bool:
    """Return whether an evaluation has a success rate, so that it need not be played again."""
    return f"{name}/success_rate" in metrics
