"""How did episodes end, and what did the student do wrong? The failure table of a phase, round by round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dagger_exp.analysis.episodes import COLLECT, EVALUATE, EpisodeGroup
from dagger_exp.analysis.load import Row
from dagger_exp.types import StopReason

SPLITS: Mapping[str, str] = {COLLECT: "rollout", EVALUATE: "eval"}
RATES = ("submission_rate", "loop_rate", "malformed_rate", "syntax_error_rate", "runtime_error_rate")


def failure_table(groups: Sequence[EpisodeGroup], rows: Sequence[Row], phase: str) -> dict[str, Any]:
    """Return the failure table of a phase.

    Args:
        groups: the episodes of a run.
        rows: of its rounds that are over.
        phase: COLLECT or EVALUATE.

    Returns:
        `rounds` with index, whether it is open, and number of episodes; `reasons`, infrastructure last, with their
        counts in these rounds; `rates` with their values in these rounds, None where a round has none.
    """
    chosen = [group for group in groups if group.phase == phase]
    counts = [Counter(group.stop_reasons) for group in chosen]
    by_round = {int(row["round"]): row for row in rows}
    rates = [
        (name, [by_round.get(group.round_index, {}).get(f"{SPLITS[phase]}/{name}") for group in chosen])
        for name in RATES
    ]
    return {
        "rounds": [(group.round_index, group.is_open, len(group)) for group in chosen],
        "reasons": [
            (reason.value, reason.is_infrastructure, [count[reason.value] for count in counts])
            for reason in StopReason
            if any(count[reason.value] for count in counts)
        ],
        "rates": [(name, values) for name, values in rates if any(value is not None for value in values)],
    }
