"""How did a group go, round by round, and where did it end? Means over its runs with 95 % intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
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
INTERVALS = ("success_rate", "loss")
"""The metrics whose interval is shown; beta and the share of student turns are chosen, not measured."""


class Estimate(NamedTuple):
    """A mean over runs with its 95 % interval; the bounds of a single run are nan, but for its success rate."""

    mean: float
    low: float
    high: float


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


def estimate(name: str, rows: Sequence[Row]) -> Estimate:
    """Return the mean of a metric over runs with Student's 95 % interval; of a single success rate with Wilson's."""
    values = [row[METRICS[name]] for row in rows]
    mean, margin = fmean(values), t_margin(values)
    low, high = mean - margin, mean + margin
    if name == "success_rate" and len(rows) == 1:
        low, high = (rows[0].get(f"eval/success_{side}", nan) for side in ("low", "high"))
    if name.endswith("_rate"):
        low, high = max(low, 0.0), min(high, 1.0)  # nan stays nan in this order
    return Estimate(mean, low, high)


def _point(round_index: int, members: Sequence[tuple[Row, Row]]) -> Point:
    spent = {axis: fmean(amounts[axis] for _, amounts in members) for axis in AXES}
    having = {name: [row for row, _ in members if key in row] for name, key in METRICS.items()}
    metrics = {name: estimate(name, rows) for name, rows in having.items() if rows}
    return Point(round_index, len(members), spent, metrics)
