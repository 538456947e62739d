"""When is a round full, and which episodes does it still need?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dagger_exp.store.view import EpisodeSummary
from dagger_exp.types import Episode, StopReason

Done = dict[int, EpisodeSummary]
"""The episodes of a round that are committed, by their index."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """Decides when a round is full. Exactly one of the two numbers is given.

    Args:
        num_labels: a budget.
        num_episodes: or a number of episodes.
        keeps: whether an episode that ended for this reason is trained on.
        expected_labels: of an episode, before any of this round has ended.
    """

    num_labels: int | None = None
    num_episodes: int | None = None
    keeps: Callable[[StopReason], bool] = lambda reason: not reason.is_infrastructure
    expected_labels: float = 1.0

    def labels(self, summary: EpisodeSummary) -> int:
        """Return how many labels of an episode are trained on."""
        return summary.num_labels if self.keeps(summary.stop_reason) else 0

    def is_useful(self, episode: Episode | EpisodeSummary) -> bool:
        """Return whether the model ended an episode, or it was cut and its labels are trained on."""
        reason = episode.stop_reason
        return not reason.is_infrastructure or (episode.num_labels > 0 and self.keeps(reason))

    def size(self, done: Done) -> int | None:
        """Return the smallest n such that episodes 0..n-1 are done and enough, None while there is none."""
        if self.num_episodes is not None:
            return self.num_episodes if all(i in done for i in range(self.num_episodes)) else None
        labels, n = 0, 0
        while labels < (self.num_labels or 0):
            if n not in done:
                return None
            labels += self.labels(done[n])
            n += 1
        return n

    def counts(self, summary: EpisodeSummary) -> int:
        """Return what an episode gives to the round: its labels, or itself."""
        return int(self.is_useful(summary)) if self.num_labels is None else self.labels(summary)

    def lack(self, done: Sequence[EpisodeSummary]) -> str:
        """Return in words what a round has that is closed with these episodes, and nothing where that is enough."""
        is_label = self.num_labels is not None
        got, wanted = sum(map(self.counts, done)), self.num_labels or self.num_episodes or 0
        if got >= wanted:
            return ""
        held = sum(summary.num_labels for summary in done) if is_label else len(done)
        rest = f", and {held - got} not trained on" if held > got else ""
        return f"{got} of {wanted} {'labels' if is_label else 'episodes'}{rest}"

    def num_wanted(self, begin: int, done: Done, num_playing: int = 0) -> float:
        """Return how many episodes from `begin` on the round is expected to need.

        Of a label budget, the labels that playing episodes are expected to bring are taken already: their mean over
        the episodes that have ended, beside as many of `expected_labels` as are still playing, since short episodes
        end first.
        """
        if self.num_episodes is not None:
            return self.num_episodes - begin
        before = [self.labels(summary) for index, summary in done.items() if index < begin]
        lack = (self.num_labels or 0) - sum(before)
        num_known = len(before) + num_playing
        mean = (sum(before) + num_playing * self.expected_labels) / num_known if num_known else self.expected_labels
        return lack / max(mean, 1.0) - num_playing


def is_hole(episode_index: int, done: Done) -> bool:
    """Return whether later episodes are done, as after a kill: the round cannot be closed with them without this one.

    Such an episode begins even where a deadline or a budget keeps others from it, and ends at once.
    """
    return episode_index < max(done, default=0)


def num_leading(done: Done) -> int:
    """Return the largest n such that episodes 0..n-1 are done."""
    return next(n for n in range(len(done) + 1) if n not in done)
