"""What was a round's collection like? Flat numbers under `rollout/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from dagger_exp.types import Actor, Episode, StopReason, Turn

SUBMITTED = (StopReason.SOLVED, StopReason.UNSOLVED)
"""How an episode ends whose actor says that the task is done."""


def rollout_metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    """Return the metrics of a round.

    An episode that infrastructure ended is counted, and in no rate of episodes; where it was only cut, its turns count.
    """
    counted = [episode for episode in episodes if not episode.stop_reason.is_infrastructure]
    sound = [one for one in episodes if not one.stop_reason.is_infrastructure or one.stop_reason.is_cut]
    turns = [turn for episode in sound for turn in episode.turns]
    students = [turn for turn in turns if turn.actor is Actor.STUDENT]
    compared = [turn for turn in students if turn.label_ids is not None]
    return {
        "rollout/num_episodes": len(episodes),
        "rollout/num_turns": len(turns),
        "rollout/num_labels": sum(turn.label_ids is not None for turn in turns),
        "rollout/num_failed": len(episodes) - len(counted),
        "rollout/num_tokens": sum(map(_num_tokens, turns)),
        "rollout/num_label_tokens": sum(len(turn.label_ids or ()) for turn in turns),
        "rollout/num_label_errors": sum(bool(turn.label_error) for turn in turns),
        "rollout/num_branches": sum(turn.starts_branch and turn.turn_index > 0 for turn in turns),
        "rollout/student_turn_rate": share(turn.actor is Actor.STUDENT for turn in turns),
        "rollout/agreement_rate": share(turn.label_text == turn.response_text for turn in compared),
        "rollout/cut_rate": share(turn.num_cut_chars > 0 for turn in turns),
        "rollout/success_rate": share(episode.solved for episode in counted),
        "rollout/turns_per_episode": sum(len(episode.turns) for episode in counted) / max(1, len(counted)),
        **failure_rates("rollout", counted),
        **stop_counts("rollout", episodes),
    }


def failure_rates(split: str, counted: Sequence[Episode]) -> dict[str, float]:
    """Return how the student fails, under a split.

    Args:
        split: `rollout` or `eval`.
        counted: episodes that infrastructure did not end. Of these are the shares that were submitted and that ended
            in a loop; the others are shares of the student's actions, see `StepResult`.
    """
    actions = [turn for episode in counted for turn in episode.turns if turn.actor is Actor.STUDENT]
    return {
        f"{split}/submission_rate": share(episode.stop_reason in SUBMITTED for episode in counted),
        f"{split}/loop_rate": share(episode.stop_reason is StopReason.LOOP for episode in counted),
        f"{split}/malformed_rate": share(not turn.valid for turn in actions),
        f"{split}/syntax_error_rate": share(turn.action_error == "syntax" for turn in actions),
        f"{split}/runtime_error_rate": share(turn.action_error == "runtime" for turn in actions),
    }


def stop_counts(split: str, episodes: Iterable[Episode]) -> dict[str, int]:
    """Return how often each stop reason occurred, also those that did not, so that every round has every count."""
    counts = Counter(episode.stop_reason for episode in episodes)
    return {f"{split}/num_stop_{reason.value}": counts[reason] for reason in StopReason}


def _num_tokens(turn: Turn) -> int:
    return len(turn.context_ids) + len(turn.response_ids)


def share(flags: Iterable[bool]) -> float:
    """Return the share of true flags; 0 of none."""
    values = list(flags)
    return sum(values) / len(values) if values else 0.0
