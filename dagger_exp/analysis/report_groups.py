"""Which runs are one line of the report? Those of a group, drawn as their mean and named in dagger-compare's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan

from dagger_exp.analysis.curves import INTERVALS, METRICS, Point, curve, final_point
from dagger_exp.analysis.groups import Group, compare, notes
from dagger_exp.analysis.load import Row, Run

DRAWN = ("success_rate", "beta", "student_turn_rate", "loss")
"""What of `METRICS` the page shows, beside the labels."""


def page_groups(runs: Sequence[Run]) -> tuple[list[Group], list[str], list[str]]:
    """Return the groups of a page, of which every run is in exactly one, and dagger-compare's warnings and notes."""
    comparisons, complaints = compare(runs)
    groups = [
        replace(group, label=f"{part.conditions}: {group.label}") if part.conditions else group
        for part in comparisons
        for group in part.groups
    ]
    grouped = {id(run) for group in groups for run in group.members}
    groups += [alone(run) for run in runs if id(run) not in grouped]  # repeats another run of its group
    if len(groups) == len(runs):  # then a run's own name says more
        groups = [replace(group, label=group.members[0].name) for group in groups]
    return groups, complaints, [note for part in comparisons for note in notes(part, part.groups[0])]


def alone(run: Run) -> Group:
    """Return the group of this run and no other, under its name."""
    return replace(compare([run])[0][0].groups[0], label=run.name)


def rows_of(group: Group) -> list[Row]:
    """Return the means of a group after each round, with the bounds of their 95 % intervals where there are any."""
    return [_row(point) for point in curve(group)]


def final_row(group: Group) -> Row:
    """Return the mean of the last rounds, empty while no run has finished."""
    return _row(final_point(group.runs)) if group.runs else {}


def _row(point: Point) -> Mapping[str, float]:
    """Return a point under the names that a run's rows have; its labels are those of all rounds so far."""
    row = {"round": point.round, "rollout/num_labels": point.spent["labels"]}
    for name in DRAWN:
        if name in point.metrics:
            key, estimate = METRICS[name], point.metrics[name]
            row[key] = estimate.mean
            if name in INTERVALS and not isnan(estimate.low):
                stem = key.removesuffix("_rate")
                row |= {f"{stem}_low": estimate.low, f"{stem}_high": estimate.high}
    return row
