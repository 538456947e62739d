"""How does the student do alone? Fixed tasks and seeds, so that two runs can be compared task by task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dagger_exp.errors import DataError
from dagger_exp.rollout.collector import MAX_FAILURE_RATE
from dagger_exp.rollout.lock_step import in_lock_step
from dagger_exp.rollout.runner import Runner
from dagger_exp.store.compaction import compact
from dagger_exp.store.reader import RoundFile, RoundReader
from dagger_exp.store.schema import to_table
from dagger_exp.types import Episode, Key, Task


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Plays every task once.

    Args:
        runner: with a mixing that leaves every turn to the student.
        tasks: held out from training.
        seed: of the evaluation, the same for every run that is to be compared.
        concurrency: episodes at once; with an engine that works in lock-step, the fixed size of a batch.
        folder: where `round_000.parquet` is written, one row per turn as in the store.
        run_id: of the run.
    """

    runner: Runner
    tasks: Sequence[Task]
    seed: int
    concurrency: int
    folder: Path
    run_id: str

    def evaluate(self, round_index: int, on_episode: Callable[[Episode], None] = lambda episode: None) -> list[Episode]:
        """Return the episodes of the student after a round; played once, read from disk the next time.

        Raises:
            DataError: the split is empty, or most episodes failed; nothing is written then.
            DriftError: a server has other weights than it was sent; nothing is written then, either.
        """
        path = self.folder / f"round_{round_index:03d}.parquet"
        if not path.exists():
            if not len(self.tasks):
                raise DataError("The env's heldout split is empty: there is nothing to evaluate on.")
            episodes = asyncio.run(self._play(round_index, on_episode))
            _check_failures(round_index, episodes)
            self.folder.mkdir(parents=True, exist_ok=True)
            compact(path, (to_table(self.run_id, [episode]) for episode in episodes))
        reader = RoundReader([RoundFile(path)])
        return reader.episodes(range(len(reader)))

    async def _play(self, round_index: int, on_episode: Callable[[Episode], None]) -> list[Episode]:
        # The round is not in the key: the same tasks meet the same coins after every round.
        tasks = [(Key(self.seed, 0, task.id, index), task) for index, task in enumerate(self.tasks)]
        places = asyncio.Semaphore(self.concurrency)

        async def play(key: Key, task: Task) -> Episode:
            async with places:
                episode = await self.runner.run(task, key)
            episode = replace(episode, round_index=round_index)
            on_episode(episode)
            return episode

        async with self.runner.connected():
            engine, episodes = self.runner.student.engine, list[Episode]()
            if engine.is_lock_step:
                for begin in range(0, len(tasks), self.concurrency):  # as in a collection, in batches of fixed members
                    batch = tasks[begin : begin + self.concurrency]
                    episodes += await in_lock_step(self.runner, {key: play(key, task) for key, task in batch})
            else:
                episodes = await asyncio.gather(*(play(key, task) for key, task in tasks))
            await engine.confirm()
            return episodes


def _check_failures(round_index: int, episodes: Sequence[Episode]) -> None:
    """Refuse an outage before it is written, since what is on the disk is never played again."""
    errors = [episode.error for episode in episodes if episode.stop_reason.is_infrastructure]
    if len(errors) > MAX_FAILURE_RATE * len(episodes):
        raise DataError(
            f"{len(errors)} of {len(episodes)} evaluation episodes after round {round_index} failed, the last with "
            f"{errors[-1]}: mend that and resume the run; they are played again."
        )
