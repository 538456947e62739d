"""How did a group go, round by round, and where did it end? Means over its runs with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan
from statistics import fmean
from typing import NamedTuple

from dagger_exp.analysis.failures import RATES
from dagger_exp.analysis.groups import Group
from dagger_exp.analysis.intervals import t_margin
from dagger_exp.analysis.load import Row, Run

AXES: Mapping[str, tuple[str, ...]] = {
    "labels": ("rollout/num_labels",),
    "teacher_queries": ("rollout/num_teacher_queries",),
    "tokens": ("round/num_tokens",),
    "seconds": ("round/collect_s", "round/train_s", "round/evaluate_s"),
}
"""What a run has spent when a round is over, beside the round itself: sums over all rounds up to it."""
METRICS: Mapping[str, str] = {
    "success_rate": "eval/success_rate",
    **{name: f"eval/{name}" for name in RATES},
    "beta": "round/beta",
    "student_turn_rate": "rollout/student_turn_rate",
    "loss": "round/loss",
}


class Estimate(NamedTuple):
    """A mean over runs with its 95 % interval; the bounds of a single run are nan, but for its success rate."""

    mean: float
    low: float
    high: float
    num_runs: int


class Point(NamedTuple):
    """A group when a round was over.

    Attributes:
        round: from 0.
        num_runs: runs that came so far.
        spent: by the names of `AXES`, means over the runs.
        metrics: by the names of `METRICS`; one that no run has is not there.
    """

    round: int
    num_runs: int
    spent: Mapping[str, float]
    metrics: Mapping[str, Estimate]

    def at(self, axis: str) -> float:
        """Return the place on an axis: `round`, or one of `AXES`."""
        return self.round if axis == "round" else self.spent[axis]


def curve(group: Group) -> list[Point]:
    """Return the points of a group, round after round; each of the runs that came that far."""
    rounds: dict[int, list[tuple[Row, Row]]] = {}
    for run in group.shown:
        for row, spent in zip(run.rows, spent_by(run), strict=True):
            rounds.setdefault(int(row["round"]), []).append((row, spent))
    return [_point(index, members) for index, members in sorted(rounds.items())]


def final_point(runs: Sequence[Run]) -> Point:
    """Return the mean of the last rounds of these runs, at least one, whichever rounds those were."""
    members = [(run.rows[-1], spent_by(run)[-1]) for run in runs]
    return _point(max(int(row["round"]) for row, _ in members), members)


def spent_by(run: Run) -> list[Row]:
    """Return what a run had spent when each of its rounds was over."""
    spent = dict.fromkeys(AXES, 0.0)
    after_rounds = []
    for row in run.rows:
        spent = {axis: spent[axis] + sum(row.get(key, 0.0) for key in keys) for axis, keys in AXES.items()}
        after_rounds.append(spent)
    return after_rounds


def t_estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value with the 95 % interval of Student's t."""
    mean, margin = fmean(values), t_margin(values)
    return Estimate(mean, mean - margin, mean + margin, len(values))


def success_estimate(rows: Sequence[Row]) -> Estimate:
    """Return the mean success rate of these rows; of a single one with its Wilson interval."""
    if len(rows) > 1:
        return _within_rates(t_estimate([row["eval/success_rate"] for row in rows]))
    low, high = (rows[0].get(f"eval/success_{side}", float("nan")) for side in ("low", "high"))
    return Estimate(rows[0]["eval/success_rate"], low, high, 1)


def _point(round_index: int, members: Sequence[tuple[Row, Row]]) -> Point:
    spent = {axis: fmean(amounts[axis] for _, amounts in members) for axis in AXES}
    metrics = {}
    for name, key in METRICS.items():
        having = [row for row, _ in members if key in row]
        if having and name == "success_rate":
            metrics[name] = success_estimate(having)
        elif having:
            estimate = t_estimate([row[key] for row in having])
            metrics[name] = _within_rates(estimate) if name.endswith("_rate") else estimate
    return Point(round_index, len(members), spent, metrics)


def _within_rates(estimate: Estimate) -> Estimate:
    if isnan(estimate.low):  # of one run
        return estimate
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))
