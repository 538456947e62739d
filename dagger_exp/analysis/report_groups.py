"""Which runs are one line of the report? Those of a group, drawn as their mean and named in dagger-compare's words."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from statistics import fmean

from dagger_exp.analysis.curves import METRICS, Point, curve, final_point
from dagger_exp.analysis.episodes import EVALUATE, EpisodeGroup
from dagger_exp.analysis.groups import Group, compare, labels, notes
from dagger_exp.analysis.load import Row, Run

DRAWN = ("success_rate", "beta", "student_turn_rate", "loss")
"""What of `METRICS` the page shows, beside the labels."""
INTERVALS = ("success_rate", "loss")
"""Those with a band; beta and the share of student turns are chosen, not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """A group as the page shows it.

    Attributes:
        label: its name in the legend and the tables.
        difference: what it sets that other groups do not; empty where nothing differs.
        group: its runs, at least one.
        places: of all its runs among those of the page, those too that are in no mean.
    """

    label: str
    difference: str
    group: Group
    places: tuple[int, ...]

    @property
    def num_runs(self) -> str:
        """How many runs the final figures are of: `6`, or `4 of 6`."""
        num_finished, num_runs = len(self.group.runs), len(self.places)
        return str(num_runs) if num_finished == num_runs else f"{num_finished} of {num_runs}"

    @property
    def final(self) -> Row:
        """The mean of the last rounds, empty while no run has finished."""
        return _row(final_point(self.group.runs)) if self.group.runs else {}


def shown_groups(runs: Sequence[Run]) -> tuple[list[ShownGroup], list[str], list[str]]:
    """Return the groups of a page, of which every run is in exactly one, and dagger-compare's warnings and notes."""
    comparisons, complaints = compare(runs)
    groups = [
        replace(group, label=f"{part.conditions}: {group.label}") if part.conditions else group
        for part in comparisons
        for group in part.groups
    ]
    grouped = {id(run) for group in groups for run in _members(group)}
    groups += [alone(run) for run in runs if id(run) not in grouped]  # repeats another run of its group
    if len(groups) == len(runs):  # then a run's own name says more
        groups = [replace(group, label=_members(group)[0].name) for group in groups]
    differences = labels([group.settings for group in groups])
    by_id = {id(run): place for place, run in enumerate(runs)}
    places = [tuple(by_id[id(run)] for run in _members(group)) for group in groups]
    shown = [
        ShownGroup(label=group.label, difference=text, group=group, places=some)
        for group, text, some in zip(groups, differences, places, strict=True)
    ]
    return shown, complaints, [note for part in comparisons for note in notes(part, part.groups[0])]


def alone(run: Run) -> Group:
    """Return the group of this run and no other, under its name."""
    return replace(compare([run])[0][0].groups[0], label=run.name)


def rows_of(group: Group) -> list[Row]:
    """Return the means of a group after each round, with the bounds of their 95 % intervals where there are any."""
    return [_row(point) for point in curve(group)]


def pooled(parts: Sequence[Sequence[EpisodeGroup]]) -> list[EpisodeGroup]:
    """Return the episodes of several runs as if they were one run's; they are counted and not read."""
    if len(parts) == 1:
        return list(parts[0])
    together: defaultdict[tuple[str, int], list[EpisodeGroup]] = defaultdict(list)
    for part in parts:
        for group in part:
            together[group.phase, group.round_index].append(group)
    return [
        replace(
            groups[0],
            is_open=any(group.is_open for group in groups),
            stop_reasons=[reason for group in groups for reason in group.stop_reasons],
        )
        for _, groups in sorted(together.items())
    ]


def last_evaluated(parts: Sequence[Sequence[EpisodeGroup]]) -> Counter[str]:
    """Count how the episodes of these runs' last evaluations ended."""
    evaluations = [[group for group in part if group.phase == EVALUATE] for part in parts]
    return Counter(reason for part in evaluations for group in part[-1:] for reason in group.stop_reasons)


def mean_rows(runs: Sequence[Run]) -> list[Row]:
    """Return each round's metrics, as means over the runs that have them."""
    rounds: defaultdict[int, list[Row]] = defaultdict(list)
    for run in runs:
        for row in run.rows:
            rounds[int(row["round"])].append(row)
    return [_mean(rows) for _, rows in sorted(rounds.items())]


def _members(group: Group) -> tuple[Run, ...]:
    return group.runs + group.left_out


def _mean(rows: Sequence[Row]) -> Row:
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: fmean(row[key] for row in rows if key in row) for key in keys}


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
