"""Many episodes: which tasks, how many at once, when a round is full.

Episode i of a round has a fixed task and fixed coins. A round with a budget of labels closes at the smallest n such
that episodes 0..n-1 hold that many; later ones that finished early are dropped. So what a round holds depends neither
on concurrency nor on a restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dagger_exp.errors import DataError
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.runner import Runner
from dagger_exp.seeding import draw
from dagger_exp.store.schema import rows_to_episode
from dagger_exp.store.store import Store
from dagger_exp.store.view import EpisodeSummary, read_rows
from dagger_exp.types import Episode, Key, StopReason, Task

MAX_FAILURE_RATE = 0.5
"""A round in which more episodes than this fail for reasons of infrastructure is given up."""
PATIENCE = 100
"""Episodes after which a collection that has nothing but failures, or no label at all, is given up."""

OnEpisode = Callable[[Episode], None]
Done = dict[int, EpisodeSummary]


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

    def wants(self, episode_index: int, done: Done) -> bool:
        """Return whether this episode may be needed, those before it being done or played.

        A straggler keeps a round open; that is no reason to begin what the round will drop.
        """
        if self.num_episodes is not None:
            return episode_index < self.num_episodes
        before = (self.labels(summary) for index, summary in done.items() if index < episode_index)
        return sum(before) < (self.num_labels or 0)


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Collects the episodes of a round into the store.

    Args:
        runner: plays an episode.
        store: where episodes are committed, whole or not at all.
        tasks: the training split.
        seed: of the run.
        concurrency: episodes at once; with an engine that works in lock-step, the fixed size of a batch.
        keeps: whether an episode that ended so in this round will be trained on (counts towards a label budget).
        episodes_per_task: consecutive episodes that share a task.
    """

    runner: Runner
    store: Store
    tasks: Sequence[Task]
    seed: int
    concurrency: int
    keeps: Callable[[int, StopReason], bool]
    episodes_per_task: int = 1

    def collect(
        self,
        round_index: int,
        *,
        num_labels: int | None = None,
        num_episodes: int | None = None,
        on_episode: OnEpisode = lambda episode: None,
    ) -> list[Episode]:
        """Collect what the store does not have yet, close the round, and return its episodes.

        Exactly one of `num_labels` (a budget) and `num_episodes` is given. The round's metrics are in its manifest.

        Raises:
            DataError: the split is empty, most episodes fail, or no episode yields a label.
        """
        if self.store.is_closed(round_index):
            reader = self.store.read(round_index)
            return reader.episodes(range(len(reader)))
        if not len(self.tasks):
            raise DataError("The env's train split is empty: there is nothing to collect from.")

        def labels(summary: EpisodeSummary) -> int:
            return summary.num_labels if self.keeps(round_index, summary.stop_reason) else 0

        self._discard_failures(round_index)
        begin, goal = time.monotonic(), Goal(num_labels=num_labels, num_episodes=num_episodes, labels=labels)
        play = self._collect_batches if self.runner.student.engine.is_lock_step else self._collect_stream
        full = asyncio.run(play(round_index, goal, on_episode))
        paths = self.store.committed_paths(round_index)
        episodes = [rows_to_episode(read_rows(paths[index])) for index in range(full)]
        _check_failures(round_index, episodes)
        counts = rollout_metrics(episodes) | {"round/collect_s": time.monotonic() - begin}
        self.store.close_round(round_index, full, counts)
        return episodes

    def _discard_failures(self, round_index: int) -> None:
        """Let a run that goes on after an outage play again what the outage ended."""
        for index, summary in self.store.committed(round_index).items():
            if summary.stop_reason.is_infrastructure:
                self.store.discard(round_index, index)

    def task(self, round_index: int, episode_index: int) -> Task:
        """Return the task of an episode: the split in an order of its own for each round, again when it is used up."""
        cycle, place = divmod(episode_index // self.episodes_per_task, len(self.tasks))
        return self.tasks[int(_order(self.seed, round_index, cycle, len(self.tasks))[place])]

    async def _collect_batches(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> int:
        """In lock-step: batches of fixed members; one that was interrupted is played again whole."""
        done, begin = self.store.committed(round_index), 0
        while (full := goal.size(done)) is None:
            members = range(begin, min(begin + self.concurrency, goal.num_episodes or begin + self.concurrency))
            if any(index not in done for index in members):
                episodes = await asyncio.gather(*(self._episode(round_index, index) for index in members))
                for episode in episodes:
                    self._commit(episode, done, goal, on_episode)
            begin = members.stop
        return full

    async def _collect_stream(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> int:
        """Without lock-step: the next episode begins when one ends."""
        done, begin, playing = self.store.committed(round_index), 0, set[asyncio.Task[Episode]]()
        try:
            while (full := goal.size(done)) is None:
                while len(playing) < self.concurrency and goal.wants(begin, done):
                    if begin not in done:
                        playing.add(asyncio.create_task(self._episode(round_index, begin)))
                    begin += 1
                finished, playing = await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    self._commit(task.result(), done, goal, on_episode)
            return full
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)

    async def _episode(self, round_index: int, episode_index: int) -> Episode:
        task = self.task(round_index, episode_index)
        return await self.runner.run(task, Key(self.seed, round_index, task.id, episode_index))

    def _commit(self, episode: Episode, done: Done, goal: Goal, on_episode: OnEpisode) -> None:
        if episode.episode_index in done:
            return
        done[episode.episode_index] = self.store.commit(episode)
        on_episode(episode)
        if len(done) >= PATIENCE:
            _give_up_without_hope(done, goal, episode)


def _check_failures(round_index: int, episodes: Sequence[Episode]) -> None:
    """Refuse a round that is mostly failures, before it is closed."""
    errors = [episode.error for episode in episodes if episode.stop_reason.is_infrastructure]
    if len(errors) > MAX_FAILURE_RATE * len(episodes):
        raise DataError(
            f"{len(errors)} of {len(episodes)} episodes of round {round_index} failed, the last with {errors[-1]}: "
            "mend that and resume the run; they are played again."
        )


def _give_up_without_hope(done: Done, goal: Goal, last: Episode) -> None:
    failed = sum(summary.stop_reason.is_infrastructure for summary in done.values())
    if failed > MAX_FAILURE_RATE * len(done) and last.error:
        raise DataError(f"{failed} of {len(done)} episodes failed; the last error was: {last.error}")
    if goal.num_labels is not None and not any(map(goal.labels, done.values())):
        raise DataError(
            f"{len(done)} episodes hold no label that is trained on; choose another labeler, mixing or filter.keep."
        )


@lru_cache(maxsize=4)
def _order(seed: int, round_index: int, cycle: int, size: int) -> np.ndarray:
    bits = draw(Key(seed, round_index, "", cycle), "task order")
    return np.random.Generator(np.random.PCG64(bits)).permutation(size)
