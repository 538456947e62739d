"""By how much does one group beat another on the same held-out tasks? Seed by seed, and task by task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import nan
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dagger_exp.analysis.episodes import evaluation_path
from dagger_exp.analysis.groups import Group
from dagger_exp.analysis.intervals import bootstrap_interval, holm, mcnemar, t_margin, t_test
from dagger_exp.analysis.load import Run
from dagger_exp.errors import StoreError
from dagger_exp.store.reader import RoundFile
from dagger_exp.types import StopReason


class Evaluation(NamedTuple):
    """The last evaluation of a run.

    Attributes:
        success_rate: of its tasks.
        solved: by task id, 1 or 0; nan where infrastructure failed. Empty where the run's episodes cannot be read.
    """

    success_rate: float
    solved: Mapping[str, float]


Seeds = Mapping[Any, Evaluation]
"""The runs of a group by their seeds."""


class Difference(NamedTuple):
    """The success rate of a group less that of the baseline.

    Attributes:
        group: label.
        difference: in [-1, 1]; the mean over the seeds that both have, or of means where they share none.
        margin: half of its 95 % t-interval over seeds, Welch's without shared seeds; nan of fewer than two seeds.
        low, high: the 95 % interval of a bootstrap over seeds and tasks; nan without episodes.
        p_value: of the t-test over seeds; McNemar's exact test over tasks where one seed is shared; None of neither.
        num_seeds: seeds that both have; 0 if the difference is unpaired.
        num_pairs: pairs of episodes, one per shared seed and task.
        num_dropped: pairs besides, of which an episode failed for reasons that are not the student's.
        holm: the p-value, corrected by Holm for all comparisons with this baseline.
    """

    group: str
    difference: float
    margin: float
    low: float
    high: float
    p_value: float | None
    num_seeds: int = 0
    num_pairs: int = 0
    num_dropped: int = 0
    holm: float | None = None


def differences(groups: Iterable[Group], baseline: Group) -> tuple[list[Difference], list[str]]:
    """Return how each other group differs from the baseline, and a sentence for each run without episodes.

    A group in which no run has finished has no difference.
    """
    complaints: list[str] = []
    others = [group for group in groups if group.label != baseline.label and group.runs and baseline.runs]
    theirs = evaluations_of(baseline, complaints) if others else {}
    rows = [difference_of(group.label, evaluations_of(group, complaints), theirs) for group in others]
    corrected = iter(holm([row.p_value for row in rows if row.p_value is not None]))
    rows = [row if row.p_value is None else row._replace(holm=next(corrected)) for row in rows]
    return rows, list(dict.fromkeys(complaints))


def evaluations_of(group: Group, complaints: list[str]) -> Seeds:
    """Read the last evaluations of a group's finished runs; a run without episodes has its rate alone."""
    found: dict[Any, Evaluation] = {}
    for run in group.runs:
        try:
            solved = solved_by(run)
        except StoreError as error:
            solved = {}
            complaints.append(str(error))
        found[run.config.get("seed")] = Evaluation(run.rows[-1]["eval/success_rate"], solved)
    return found


def solved_by(run: Run) -> dict[str, float]:
    """Read which tasks of its last evaluation a run solved.

    Raises:
        StoreError: the run keeps no episodes on this disk, or their file is missing or damaged.
    """
    if run.folder is None:
        raise StoreError("runs read from W&B have no episodes, so they are in no bootstrap: give their folders.")
    path = evaluation_path(run.folder, int(run.rows[-1]["round"]))
    try:
        file = RoundFile(path)
    except StoreError as error:
        raise StoreError(f"{path} is missing, damaged or of another version: its run is in no bootstrap.") from error
    reasons = zip(file.task_ids, file.stop_reasons, strict=True)
    return {task: nan if why.is_infrastructure else float(why is StopReason.SOLVED) for task, why in reasons}


def difference_of(label: str, group: Seeds, baseline: Seeds) -> Difference:
    """Compare two groups by the seeds that both have, or as independent samples where they share none."""
    shared = [seed for seed in group if seed in baseline]
    if not shared:
        rates = [[run.success_rate for run in side.values()] for side in (group, baseline)]
        bounds = bootstrap_interval(*_tables(*([run.solved for run in side.values()] for side in (group, baseline))))
        return Difference(label, fmean(rates[0]) - fmean(rates[1]), t_margin(*rates), *bounds, t_test(*rates))
    pairs = [(group[seed], baseline[seed]) for seed in shared]
    (table,) = _tables([_gains(ours.solved, theirs.solved) for ours, theirs in pairs])
    is_pair = np.isfinite(table)
    gains = [
        float(np.nanmean(row)) if has.any() else ours.success_rate - theirs.success_rate
        for row, has, (ours, theirs) in zip(table, is_pair, pairs, strict=True)
    ]
    num_shared = sum(len(ours.solved.keys() & theirs.solved.keys()) for ours, theirs in pairs)
    return Difference(
        label,
        fmean(gains),
        t_margin(gains),
        *bootstrap_interval(table),
        mcnemar(table) if len(shared) == 1 and is_pair.any() else t_test(gains),
        num_seeds=len(shared),
        num_pairs=int(is_pair.sum()),
        num_dropped=num_shared - int(is_pair.sum()),
    )


def _gains(ours: Mapping[str, float], theirs: Mapping[str, float]) -> dict[str, float]:
    """Return 1, 0 or -1 for each task that both played: solved by the first alone, by both or none, not by it."""
    return {task: value - theirs[task] for task, value in ours.items() if task in theirs}


def _tables(*sides: Sequence[Mapping[str, float]]) -> list[np.ndarray]:
    """Return values by task as float [seeds, tasks], of all sides with the same tasks; nan where there is none."""
    tasks = sorted({task for side in sides for values in side for task in values})
    return [np.array([[values.get(task, nan) for task in tasks] for values in side]) for side in sides]
