"""How did episodes end, and what did the student do wrong? The failure table of a phase, round by round."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dagger_exp.analysis.episodes import COLLECT, EVALUATE, EpisodeGroup
from dagger_exp.analysis.load import Run
from dagger_exp.types import StopReason

SPLITS: Mapping[str, str] = {COLLECT: "rollout", EVALUATE: "eval"}
RATES = ("submission_rate", "loop_rate", "malformed_rate", "syntax_error_rate", "runtime_error_rate")


def failure_table(parts: Sequence[Sequence[EpisodeGroup]], runs: Sequence[Run], phase: str) -> dict[str, Any]:
    """Return the failure table of a phase over one or more runs: episodes are added up, and rates are means.

    Args:
        parts: the episodes of each run.
        runs: the same runs.
        phase: COLLECT or EVALUATE.

    Returns:
        `rounds` with index, whether it is open, and number of episodes; `reasons`, infrastructure last, with their
        counts in these rounds; `rates` with their values in these rounds, None where a round has none.
    """
    rounds: defaultdict[int, list[EpisodeGroup]] = defaultdict(list)
    for group in (group for part in parts for group in part if group.phase == phase):
        rounds[group.round_index].append(group)
    found = sorted(rounds.items())
    counts = [Counter(reason for group in groups for reason in group.stop_reasons) for _, groups in found]
    rates = [(name, [_mean_rate(runs, index, f"{SPLITS[phase]}/{name}") for index, _ in found]) for name in RATES]
    return {
        "rounds": [
            (index, any(group.is_open for group in groups), count.total())
            for (index, groups), count in zip(found, counts, strict=True)
        ],
        "reasons": [
            (reason.value, reason.is_infrastructure, [count[reason.value] for count in counts])
            for reason in StopReason
            if any(count[reason.value] for count in counts)
        ],
        "rates": [(name, values) for name, values in rates if any(value is not None for value in values)],
    }


def last_evaluated(parts: Sequence[Sequence[EpisodeGroup]]) -> Counter[str]:
    """Count how the episodes of these runs' last evaluations ended."""
    evaluations = [[group for group in part if group.phase == EVALUATE] for part in parts]
    return Counter(reason for part in evaluations for group in part[-1:] for reason in group.stop_reasons)


def _mean_rate(runs: Sequence[Run], round_index: int, key: str) -> float | None:
    values = [row[key] for run in runs for row in run.rows if row["round"] == round_index and key in row]
    return fmean(values) if values else None
