"""Which task does an episode of a round play, and which coins does it meet?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from dagger_exp.seeding import draw
from dagger_exp.types import Key, Task


class Plan(Protocol):
    """A pure function of the round and the episode, so that it depends neither on concurrency nor on a restart."""

    @property
    def tasks(self) -> Sequence[Task]: ...

    @property
    def seed(self) -> int: ...

    def __call__(self, round_index: int, episode_index: int) -> tuple[Task, Key]:
        """Return the task of an episode and the key of its coins."""
        ...


@dataclass(frozen=True, kw_only=True)
class ShuffledTasks:
    """The plan of a collection: each round plays the tasks in an order of its own, again when they are used up.

    Args:
        tasks: the training split.
        seed: of the run.
        episodes_per_task: consecutive episodes that share a task.
    """

    tasks: Sequence[Task]
    seed: int
    episodes_per_task: int = 1

    def __call__(self, round_index: int, episode_index: int) -> tuple[Task, Key]:
        cycle, place = divmod(episode_index // self.episodes_per_task, len(self.tasks))
        task = self.tasks[int(_order(self.seed, round_index, cycle, len(self.tasks))[place])]
        return task, Key(self.seed, round_index, task.id, episode_index)


@dataclass(frozen=True, kw_only=True)
class SameTasks:
    """The plan of an evaluation: after every round each task is played once, with the same coins.

    Args:
        tasks: those of the evaluation.
        seed: of the evaluation, the same for all runs that are to be compared.
    """

    tasks: Sequence[Task]
    seed: int

    def __call__(self, round_index: int, episode_index: int) -> tuple[Task, Key]:
        task = self.tasks[episode_index]
        return task, Key(self.seed, 0, task.id, episode_index)


@lru_cache(maxsize=4)
def _order(seed: int, round_index: int, cycle: int, size: int) -> np.ndarray:
    bits = draw(Key(seed, round_index, "", cycle), "task order")
    return np.random.Generator(np.random.PCG64(bits)).permutation(size)
