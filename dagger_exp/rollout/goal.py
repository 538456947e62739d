"""When is a round full, and what of it is whole?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dagger_exp.store.view import EpisodeSummary

Done = dict[int, EpisodeSummary]
"""The episodes of a round that are committed, by their index."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """When is a round full? Exactly one of the two numbers is given.

    Args:
        num_labels: a budget.
        num_episodes: or a number of episodes.
        labels: how many labels an episode counts.
    """

    num_labels: int | None
    num_episodes: int | None
    labels: Callable[[EpisodeSummary], int]

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
        is_label = self.num_labels is not None
        return self.labels(summary) if is_label else int(not summary.stop_reason.is_infrastructure)

    def lack(self, done: Sequence[EpisodeSummary]) -> str:
        """Return in words what a round has that is closed with these episodes, and nothing where that is enough."""
        is_label = self.num_labels is not None
        got, wanted = sum(map(self.counts, done)), self.num_labels or self.num_episodes or 0
        if got >= wanted:
            return ""
        held = sum(summary.num_labels for summary in done) if is_label else len(done)
        rest = f", and {held - got} not trained on" if held > got else ""
        return f"{got} of {wanted} {'labels' if is_label else 'episodes'}{rest}"

    def wants(self, episode_index: int, done: Done) -> bool:
        """Return whether this episode may be needed, those before it being done or played.

        A straggler keeps a round open; that is no reason to begin what the round will drop.
        """
        if self.num_episodes is not None:
            return episode_index < self.num_episodes
        before = (self.labels(summary) for index, summary in done.items() if index < episode_index)
        return sum(before) < (self.num_labels or 0)


def is_hole(episode_index: int, done: Done) -> bool:
    """Return whether later ones are done, as after a kill: without it they would be dropped, though nothing may begin.

    It ends at once, by the limit that keeps others from their beginning.
    """
    return episode_index < max(done, default=0)


def whole(done: Done) -> int:
    """Return the largest n such that episodes 0..n-1 are done."""
    return next(n for n in range(len(done) + 1) if n not in done)
