"""By how much does one group beat another on the same held-out tasks? Task by task, and seed by seed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import bdtr  # scipy.stats takes most of a second to import

from dagger_exp.analysis.groups import Group
from dagger_exp.analysis.load import Run
from dagger_exp.errors import StoreError
from dagger_exp.store.reader import RoundFile
from dagger_exp.types import StopReason

NUM_RESAMPLES = 2000

Outcomes = Mapping[str, StopReason]
"""How the episode of each held-out task ended, by task id."""


class Difference(NamedTuple):
    """The success rate of a group less that of the baseline, over the pairs that both have.

    Attributes:
        group: label.
        difference: in [-1, 1]; nan where there is no pair.
        low, high: its 95 % interval, of a bootstrap over seeds and tasks.
        p_value: of the exact McNemar test; None where there is more than one run on a side.
        num_runs: seeds that both groups have.
        num_pairs: pairs of episodes, one per seed and task.
        num_dropped: pairs besides, of which an episode failed for reasons that are not the student's.
    """

    group: str
    difference: float
    low: float
    high: float
    p_value: float | None
    num_runs: int
    num_pairs: int
    num_dropped: int


def outcomes_of(run: Run) -> Outcomes:
    """Read how the last evaluation of a run ended, task by task.

    Raises:
        StoreError: the run keeps no episodes on this disk, or their file is missing or damaged.
    """
    if run.folder is None:
        raise StoreError(
            "runs read from W&B have no episodes, so they are in no paired difference: give their folders."
        )
    path = run.folder / "eval" / f"round_{int(run.rows[-1]['round']):03d}.parquet"
    try:
        file = RoundFile(path)
        return dict(zip(file.task_ids, file.stop_reasons, strict=True))
    except StoreError as error:
        raise StoreError(
            f"{path} is missing, damaged or of another version: its run is in no paired difference."
        ) from error


def all_outcomes(groups: Iterable[Group]) -> tuple[dict[str, dict[Any, Outcomes]], list[str]]:
    """Return the outcomes of each group by label and seed, and a sentence for each run that has none."""
    found: dict[str, dict[Any, Outcomes]] = {}
    complaints: list[str] = []
    for group in groups:
        found[group.label] = {}
        for run in group.runs:
            try:
                found[group.label][run.config.get("seed")] = outcomes_of(run)
            except StoreError as error:
                complaints.append(str(error))
    return found, list(dict.fromkeys(complaints))


def differences(groups: Iterable[Group], baseline: Group) -> tuple[list[Difference], list[str]]:
    """Return how each other group differs from the baseline, and a sentence for each run that cannot be paired."""
    groups = list(groups)
    outcomes, complaints = all_outcomes(groups)
    others = [group.label for group in groups if group.label != baseline.label]
    return [paired_difference(label, outcomes[label], outcomes[baseline.label]) for label in others], complaints


def paired_difference(label: str, group: Mapping[Any, Outcomes], baseline: Mapping[Any, Outcomes]) -> Difference:
    """Compare the outcomes of two groups, each by seed."""
    gains = [_gains(group[seed], baseline[seed]) for seed in group if seed in baseline]
    tasks = {task: column for column, task in enumerate(sorted({task for gain in gains for task in gain}))}
    table = np.full((len(gains), len(tasks)), np.nan)
    for row, gain in enumerate(gains):
        for task, value in gain.items():
            table[row, tasks[task]] = value
    num_pairs = sum(map(len, gains))
    shared = sum(len(group[seed].keys() & baseline[seed].keys()) for seed in group if seed in baseline)
    low, high = bootstrap_interval(table) if num_pairs else (np.nan, np.nan)
    return Difference(
        group=label,
        difference=float(np.nanmean(table)) if num_pairs else np.nan,
        low=low,
        high=high,
        p_value=mcnemar(table) if num_pairs and len(group) == len(baseline) == 1 else None,
        num_runs=len(gains),
        num_pairs=num_pairs,
        num_dropped=shared - num_pairs,
    )


def bootstrap_interval(table: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of the mean of paired differences, resampling both seeds and tasks.

    Args:
        table: the differences, float [seeds, tasks]; nan where there is no pair.
    """
    seeds, tasks = _draws(*table.shape)
    sums = ((seeds @ np.nan_to_num(table)) * tasks).sum(axis=1)
    counts = ((seeds @ np.isfinite(table).astype(float)) * tasks).sum(axis=1)
    low, high = np.quantile(sums[counts > 0] / counts[counts > 0], [0.025, 0.975])
    return float(low), float(high)


def mcnemar(table: np.ndarray) -> float:
    """Return the p-value of the exact McNemar test: the pairs that differ go either way like a fair coin."""
    num_won, num_lost = int((table > 0).sum()), int((table < 0).sum())
    return min(1.0, 2 * float(bdtr(min(num_won, num_lost), num_won + num_lost, 0.5)))


@lru_cache
def _draws(num_seeds: int, num_tasks: int) -> tuple[np.ndarray, np.ndarray]:
    """Return how often each resample draws each seed and each task: it is two products then, and no copy.

    Returns:
        float [resamples, seeds] and float [resamples, tasks].
    """
    generator = np.random.default_rng(0)
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_RESAMPLES)
    tasks = generator.multinomial(num_tasks, np.full(num_tasks, 1 / num_tasks), NUM_RESAMPLES)
    return seeds.astype(float), tasks.astype(float)


def _gains(group: Outcomes, baseline: Outcomes) -> dict[str, int]:
    """Return 1, 0 or -1 for each task that both played: solved by the group alone, by both or none, or not by it."""
    return {
        task: (ours is StopReason.SOLVED) - (baseline[task] is StopReason.SOLVED)
        for task, ours in group.items()
        if task in baseline and not ours.is_infrastructure and not baseline[task].is_infrastructure
    }
