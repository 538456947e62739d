"""Which episodes and turns are trained on, and how much each token counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dagger_exp.data.prefix_tree import Row
from dagger_exp.errors import ConfigError
from dagger_exp.types import Episode, StopReason

FILTERS = ("all", "finished", "solved", "warmup_solved")
NORMALIZATIONS = ("token", "turn", "episode")
AGGREGATIONS = ("union", "latest", "window")


@dataclass(frozen=True, kw_only=True)
class EpisodeFilter:
    """Decides which episodes are trained on. Failures of infrastructure never are, but for those that were only cut.

    Args:
        keep: `all`; `finished` (the agent ended the episode itself); `solved` (rejection sampling);
            `warmup_solved` (`solved` in the first `warmup_rounds` rounds, then `all`).
        warmup_rounds: rounds with the stricter rule of `warmup_solved`.
        keep_cut: whether `all` keeps the labelled turns of episodes that a deadline, a time-out, the teacher or its
            budget cut: the states are sound, and so are their labels.
    """

    keep: str = "all"
    warmup_rounds: int = 1
    keep_cut: bool = True

    def __post_init__(self) -> None:
        if self.keep not in FILTERS:
            raise ConfigError(f"filter.keep is {self.keep!r}; choose one of {', '.join(FILTERS)}.")

    def __call__(self, round_index: int, stop_reason: StopReason) -> bool:
        if self.keep == "finished":
            return stop_reason in (StopReason.SOLVED, StopReason.UNSOLVED)
        if self.keep == "solved" or (self.keep == "warmup_solved" and round_index < self.warmup_rounds):
            return stop_reason is StopReason.SOLVED
        return not stop_reason.is_infrastructure or (self.keep_cut and stop_reason.is_cut)


def aggregated_rounds(aggregation: str, round_index: int, window: int) -> range:
    """Return the rounds that are trained on in a round: DAgger's `union`, the `latest` one, or the last `window`.

    Raises:
        ConfigError: no such aggregation, or a window without a round.
    """
    if aggregation not in AGGREGATIONS:
        raise ConfigError(f"aggregation is {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}.")
    if aggregation == "window" and window < 1:
        raise ConfigError(f"window is {window}; it holds at least 1 round.")
    first = {"union": 0, "latest": round_index, "window": max(0, round_index + 1 - window)}[aggregation]
    return range(first, round_index + 1)


def label_rows(episode: Episode, normalize: str) -> Iterator[Row]:
    """Yield every labelled turn of an episode as a row; executed tokens and observations are context only.

    Args:
        episode: as recorded.
        normalize: what has weight 1 in the loss: each label `token`, each labelled `turn`, or each `episode`.

    Raises:
        ConfigError: no such normalisation.
    """
    if normalize not in NORMALIZATIONS:
        raise ConfigError(f"loss.normalize is {normalize!r}; choose one of {', '.join(NORMALIZATIONS)}.")
    num_tokens = sum(len(turn.label_ids or ()) for turn in episode.turns)
    prompt: list[int] = []
    for turn in episode.turns:
        prompt = [*turn.context_ids] if turn.starts_branch else [*prompt, *turn.context_ids]
        if turn.label_ids:
            weight = {"token": 1.0, "turn": 1.0 / len(turn.label_ids), "episode": 1.0 / num_tokens}[normalize]
            weights = [weight] * len(turn.label_ids)
            yield Row(prompt, turn.label_ids, weights, (episode.round_index, episode.episode_index))
        prompt = [*prompt, *turn.response_ids]
