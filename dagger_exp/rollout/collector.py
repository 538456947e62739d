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
RoundSize = Callable[[dict[int, EpisodeSummary]], int | None]
"""How many episodes a round shall hold, by what the store has of it; None while that is not known."""


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
        max_attempts: how often an episode is tried that fails for reasons of infrastructure.
    """

    runner: Runner
    store: Store
    tasks: Sequence[Task]
    seed: int
    concurrency: int
    keeps: Callable[[int, StopReason], bool]
    episodes_per_task: int = 1
    max_attempts: int = 2

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
            DataError: the split is empty, nearly every episode fails, or no episode yields a label.
        """
        if not len(self.tasks):
            raise DataError("The env's train split is empty: there is nothing to collect from.")

        def size(done: dict[int, EpisodeSummary]) -> int | None:
            if num_episodes is not None:
                return num_episodes if all(i in done for i in range(num_episodes)) else None
            return self._size_for_labels(round_index, done, num_labels or 0)

        begin = time.monotonic()
        play = self._collect_batches if self.runner.student.engine.is_lock_step else self._collect_stream
        full = asyncio.run(play(round_index, size, num_episodes, on_episode))
        paths = self.store.committed_paths(round_index)
        episodes = [rows_to_episode(read_rows(paths[index])) for index in range(full)]
        counts = rollout_metrics(episodes) | {"round/collect_s": time.monotonic() - begin}
        self.store.close_round(round_index, full, counts)
        return episodes

    def task(self, round_index: int, episode_index: int) -> Task:
        """Return the task of an episode: the split in an order of its own for each round, again when it is used up."""
        cycle, place = divmod(episode_index // self.episodes_per_task, len(self.tasks))
        return self.tasks[int(_order(self.seed, round_index, cycle, len(self.tasks))[place])]

    def _size_for_labels(self, round_index: int, done: dict[int, EpisodeSummary], budget: int) -> int | None:
        """Return the smallest n such that episodes 0..n-1 hold the budget, None while they do not."""
        labels, n = 0, 0
        while labels < budget:
            if n not in done:
                return None
            labels += done[n].num_labels if self.keeps(round_index, done[n].stop_reason) else 0
            n += 1
        return n

    async def _collect_batches(
        self, round_index: int, size: RoundSize, limit: int | None, on_episode: OnEpisode
    ) -> int:
        """In lock-step: batches of fixed members; one that was interrupted is played again whole."""
        done, begin = self.store.committed(round_index), 0
        while (full := size(done)) is None:
            members = range(begin, min(begin + self.concurrency, limit or begin + self.concurrency))
            if any(index not in done for index in members):
                episodes = await asyncio.gather(*(self._episode(round_index, index) for index in members))
                for episode in episodes:
                    self._commit(episode, done, on_episode)
            begin = members.stop
        return full

    async def _collect_stream(self, round_index: int, size: RoundSize, limit: int | None, on_episode: OnEpisode) -> int:
        """Without lock-step: the next episode begins when one ends."""
        done, begin, playing = self.store.committed(round_index), 0, set[asyncio.Task[Episode]]()
        try:
            while (full := size(done)) is None:
                while len(playing) < self.concurrency and (limit is None or begin < limit):
                    if begin not in done:
                        playing.add(asyncio.create_task(self._episode(round_index, begin)))
                    begin += 1
                finished, playing = await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    self._commit(task.result(), done, on_episode)
            return full
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)

    async def _episode(self, round_index: int, episode_index: int) -> Episode:
        task = self.task(round_index, episode_index)
        key = Key(self.seed, round_index, task.id, episode_index)
        episode = await self.runner.run(task, key)
        for _ in range(self.max_attempts - 1):
            if episode.stop_reason.is_infrastructure:
                episode = await self.runner.run(task, key)
        return episode

    def _commit(self, episode: Episode, done: dict[int, EpisodeSummary], on_episode: OnEpisode) -> None:
        if episode.episode_index in done:
            return
        done[episode.episode_index] = self.store.commit(episode)
        on_episode(episode)
        failed = sum(summary.stop_reason.is_infrastructure for summary in done.values())
        if len(done) >= PATIENCE and failed > MAX_FAILURE_RATE * len(done):
            raise DataError(f"{failed} of {len(done)} episodes failed; the last error was: {episode.error}")
        if len(done) >= PATIENCE and not any(summary.num_labels for summary in done.values()):
            raise DataError(f"{len(done)} episodes hold no label; choose another labeler or mixing.")


@lru_cache(maxsize=4)
def _order(seed: int, round_index: int, cycle: int, size: int) -> np.ndarray:
    bits = draw(Key(seed, round_index, "", cycle), "task order")
    return np.random.Generator(np.random.PCG64(bits)).permutation(size)
