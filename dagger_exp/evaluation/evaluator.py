"""How does the student do alone? Fixed tasks and coins, so that two runs can be compared task by task."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dagger_exp.evaluation.metrics import evaluation_metrics, has_rate
from dagger_exp.rollout.collector import Collector, check_failures
from dagger_exp.rollout.goal import Goal
from dagger_exp.types import Episode


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Plays every task of a split once after each round.

    An evaluation is an open round of its own store until at most `MAX_INFRASTRUCTURE_RATE` of its episodes have failed
    for reasons that are not the student's. What a kill or a failure has left out is played when it is asked for again.

    Args:
        name: of the evaluation, which begins the names of its metrics: `eval` or `validation`.
        collector: with a plan of `SameTasks`, and a runner that leaves every turn to the student.
    """

    name: str
    collector: Collector

    @property
    def num_tasks(self) -> int:
        return len(self.collector.plan.tasks)

    def num_done(self, round_index: int) -> int:
        """Return how many tasks need not be played again."""
        done = self.collector.store.committed(round_index).values()
        return sum(not summary.stop_reason.is_infrastructure for summary in done)

    def evaluate(self, round_index: int, on_episode: Callable[[Episode], None] = lambda episode: None) -> list[Episode]:
        """Return the episodes of the student after a round.

        Args:
            round_index: the round.
            on_episode: is called with each episode that is played now.

        Raises:
            DataError: most episodes failed.
            DriftError: a server has other weights than it was sent; what it played since the last commit is lost.
        """
        store = self.collector.store
        if store.is_closed(round_index):
            return store.read(round_index).all_episodes()
        goal = Goal(num_episodes=self.num_tasks)
        store.claim()
        try:
            episodes = self.collector.play(round_index, goal, on_episode)
            check_failures(episodes, goal, f"evaluation episodes after round {round_index}")
            metrics = evaluation_metrics(episodes, self.name)
            if has_rate(metrics, self.name):
                store.close_round(round_index, len(episodes), metrics)
        finally:
            store.release()
        return episodes
