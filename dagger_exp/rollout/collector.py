"""Many episodes: how many at once, when a round is full, what is kept of it.

Episode i of a round has a fixed task and fixed coins. A round with a budget of labels closes at the smallest n such
that episodes 0..n-1 hold that many; later ones that finished early are dropped. So what a round holds depends neither
on concurrency nor on a restart. Where the round's deadline or the teacher's budget ends it earlier, it is closed as it
is: with what was finished, and the stragglers among its failures.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dagger_exp.errors import ConfigError, DataError, first_line
from dagger_exp.rollout.demonstrations.importing import Demonstrations
from dagger_exp.rollout.goal import Done, Goal, is_hole, num_leading
from dagger_exp.rollout.lock_step import in_lock_step
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.plan import Plan
from dagger_exp.rollout.runner import FINAL, Runner
from dagger_exp.rollout.scored import try_scoring
from dagger_exp.store.store import Store
from dagger_exp.store.view import EpisodeSummary, summarize
from dagger_exp.types import Episode, Key, StopReason

MAX_FAILURE_RATE = 0.5
"""A round is given up in which more than this share of the episodes is lost to infrastructure, or of the labels."""
PATIENCE = 100
"""Episodes after which a collection that has nothing but failures, or no label at all, is given up."""
CURE_OF_CONTEXT = "raise student.max_context_tokens or lower rollout.max_new_tokens"
"""Where episodes end because the student's context is full."""

OnEpisode = Callable[[Episode], None]


@contextmanager
def _frozen_heap() -> Iterator[None]:
    """Leave what exists out of garbage collection, and collect a hundred times less often.

    One pass over a model's libraries takes a tenth of a second, and what an episode makes lives until its end. With a
    thousand episodes at once a turn would otherwise take half as much CPU time again (measured).
    """
    often = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(100 * often[0], *often[1:])
    try:
        yield
    finally:
        gc.set_threshold(*often)
        gc.unfreeze()


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Collects the episodes of a round into the store.

    Args:
        runner: plays an episode.
        store: where episodes are committed, whole or not at all.
        plan: gives each episode its task and its coins.
        concurrency: episodes at once; with an engine that works in lock-step, the fixed size of a batch.
        keeps: whether an episode that ended so in this round will be trained on (counts towards a label budget).
        round_timeout_s: after which no episode begins and those that play are cut; None waits for all.
        demonstrations: are imported as round 0, which is not played then, whatever its goal; None plays it.
    """

    runner: Runner
    store: Store
    plan: Plan
    concurrency: int
    keeps: Callable[[int, StopReason], bool]
    round_timeout_s: float | None = None
    demonstrations: Demonstrations | None = None

    def is_imported(self, round_index: int) -> bool:
        """Return whether a round comes from files."""
        return self.demonstrations is not None and round_index == 0

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
            ConfigError: the teacher's budget of the run is spent before the round begins, or no demonstration helps.
            DriftError: a server has other weights than it was sent; what it played since the last commit is lost.
        """
        if self.store.is_closed(round_index):
            return self.store.read(round_index).all_episodes()
        if self.demonstrations is not None and self.is_imported(round_index):
            return self.demonstrations.collect(self.runner, self.store, self.plan.seed, on_episode)
        if not len(self.plan.tasks):
            raise DataError("The env's train split is empty: there is nothing to collect from.")

        self.runner.teacher.check()
        self._begin_budget(round_index)  # counts what failures have cost, too
        begin, goal = time.monotonic(), self._goal(round_index, num_labels, num_episodes)
        try:
            episodes = self.play(round_index, goal, on_episode)
        finally:
            self.runner.budget.save()  # what an interruption loses has been paid for
        summaries = [summarize(episode) for episode in episodes]
        self._check_any(round_index, summaries, goal)
        check_failures(episodes, goal, f"episodes of round {round_index}")
        counts = {"round/collect_s": time.monotonic() - begin, **self.runner.budget.metrics()}
        self.store.close_round(round_index, len(episodes), rollout_metrics(episodes) | counts)
        self._warn_of_short(round_index, episodes, goal)
        return episodes

    def _goal(self, round_index: int, num_labels: int | None, num_episodes: int | None) -> Goal:
        return Goal(
            num_labels=num_labels,
            num_episodes=num_episodes,
            keeps=partial(self.keeps, round_index),
            expected_labels=self._expected_labels(round_index),
        )

    def _expected_labels(self, round_index: int) -> float:
        """Return the labels of an episode in the round before; without one, as many as an episode may have turns."""
        if round_index > 0 and self.store.is_closed(round_index - 1):
            manifest = self.store.manifest(round_index - 1)
            if manifest["num_labels"]:
                return manifest["num_labels"] / manifest["num_episodes"]
        return self.runner.max_turns(round_index)

    @_frozen_heap()
    def play(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> list[Episode]:
        """Commit what the open round lacks; return the episodes that it is to be closed with.

        Episodes that infrastructure ended are played again, unless they were cut and their labels are trained on.
        """
        if self.runner.budget.spent is None:
            self._discard_failures(round_index, goal)
        return self.store.episodes(round_index, asyncio.run(self._play(round_index, goal, on_episode)))

    def _discard_failures(self, round_index: int, goal: Goal) -> None:
        """Let a run that goes on after an outage play the episodes again that the outage ended."""
        done = self.store.committed(round_index)
        if failed := [index for index, summary in done.items() if not goal.is_useful(summary)]:
            self.store.discard(round_index, failed)

    def _begin_budget(self, round_index: int) -> None:
        """Tell the budget what is known to be spent, and refuse a round that it leaves nothing."""
        budget = self.runner.budget
        budget.begin(self.store, round_index)
        if budget.spent is not None and not self.store.committed_paths(round_index):
            raise ConfigError(
                f"teacher_budget.{budget.spent} is spent before round {round_index}: raise it; the same command with "
                "hydra.run.dir=FOLDER goes on there."
            )

    def _check_any(self, round_index: int, done: Sequence[EpisodeSummary], goal: Goal) -> None:
        """Refuse a round that a budget or a deadline ended before it had anything."""
        is_full = goal.size(dict(enumerate(done))) is not None
        if not is_full and not any(map(goal.counts, done)):
            raise DataError(
                f"{self._limit()}, and no episode of round {round_index} is of use: raise it; "
                "the same command with hydra.run.dir=FOLDER goes on there."
            )

    def _warn_of_short(self, round_index: int, episodes: Sequence[Episode], goal: Goal) -> None:
        """Say that a round was closed with less than was asked for, or that labels failed."""
        done, sentences = [summarize(episode) for episode in episodes], list[str]()
        if lack := goal.lack(done):
            is_cut = goal.size(dict(enumerate(done))) is None or any(one.stop_reason in FINAL for one in done)
            why = self._limit() if is_cut else "see failures.csv"
            sentences.append(f"round {round_index} was closed with {lack}: {why}.")
        if errors := [turn.label_error for episode in episodes for turn in episode.turns if turn.label_error]:
            asked = len(errors) + sum(one.num_labels for one in done)
            sentences.append(f"{len(errors)} of {asked} labels of round {round_index} failed, the last: {errors[-1]}")
        for sentence in sentences:
            logging.getLogger(__name__).warning(sentence)
            self.runner.watchdog.say(sentence)

    def _limit(self) -> str:
        """Return what has ended a round early."""
        spent = self.runner.budget.spent
        return f"teacher_budget.{spent} is spent" if spent else "rollout.round_timeout_s is over"

    async def _play(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> int:
        play = self._collect_batches if self.runner.student.engine.is_lock_step else self._collect_stream
        async with self.runner.connected():
            await try_scoring(self.runner.teacher, self.runner.labeler, self.runner.chat.end_id)
            return await play(round_index, goal, on_episode)

    async def _collect_batches(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> int:
        """In lock-step: batches whose members follow from those before; an interrupted one is played again whole."""
        done, begin, end = self.store.committed(round_index), 0, self._deadline()
        while (full := goal.size(done)) is None:
            size = min(self.concurrency, max(1, math.ceil(goal.num_wanted(begin, done))))
            members = range(begin, begin + size)
            if any(index not in done for index in members):
                if not (self._may_begin(end) or is_hole(begin, done)):
                    return num_leading(done)
                playing = dict(self._episode(round_index, index, end, goal) for index in members)
                await self._commit(round_index, await in_lock_step(self.runner, playing), done, goal, on_episode)
            begin = members.stop
        return full

    async def _collect_stream(self, round_index: int, goal: Goal, on_episode: OnEpisode) -> int:
        """Without lock-step: the next episode begins when one ends."""
        done, begin, playing = self.store.committed(round_index), 0, set[asyncio.Task[Episode]]()
        end = self._deadline()
        try:
            while (full := goal.size(done)) is None:
                while len(playing) < self.concurrency and goal.num_wanted(begin, done, len(playing)) > 0:
                    if not (self._may_begin(end) or is_hole(begin, done)):
                        break
                    if begin not in done:
                        _, episode = self._episode(round_index, begin, end, goal)
                        playing.add(asyncio.create_task(episode))
                    begin += 1
                if not playing:
                    return num_leading(done)
                finished, playing = await asyncio.wait(playing, return_when=asyncio.FIRST_COMPLETED)
                await self._commit(round_index, [task.result() for task in finished], done, goal, on_episode)
            return full
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)

    def _deadline(self) -> float:
        return math.inf if self.round_timeout_s is None else time.monotonic() + self.round_timeout_s

    def _may_begin(self, end: float) -> bool:
        return time.monotonic() < end and self.runner.budget.spent is None

    def _episode(
        self, round_index: int, episode_index: int, end: float, goal: Goal
    ) -> tuple[Key, Coroutine[Any, Any, Episode]]:
        """Return the key of an episode, and what plays it."""
        task, key = self.plan(round_index, episode_index)
        return key, self.runner.run(task, key, end, goal.is_useful)

    async def _commit(
        self, round_index: int, episodes: Sequence[Episode], done: Done, goal: Goal, on_episode: OnEpisode
    ) -> None:
        """Commit what has ended by now while others play: in one thread and file, since threads hinder each other."""
        # A plan may give keys of another round, so that every evaluation throws the same coins.
        new = [replace(one, round_index=round_index) for one in episodes if one.episode_index not in done]
        if new:
            await self.runner.student.engine.confirm()

        def write() -> list[EpisodeSummary]:
            self.runner.budget.save()
            return self.store.commit(*new)

        for episode, summary in zip(new, await asyncio.to_thread(write), strict=True):
            done[episode.episode_index] = summary
            on_episode(episode)
            if len(done) >= PATIENCE:
                _give_up_without_hope(done, goal, episode)


def check_failures(episodes: Sequence[Episode], goal: Goal, what: str) -> None:
    """Refuse episodes that are mostly failures, before their round is closed.

    Raises:
        DataError: names the last error.
    """
    errors = [episode.error for episode in episodes if _is_lost(episode, goal)]
    if len(errors) > MAX_FAILURE_RATE * len(episodes):
        raise DataError(
            f"{len(errors)} of {len(episodes)} {what} failed, the last with {first_line(errors[-1])}: "
            "fix that and resume the run, which plays them again."
        )
    _check_labels(episodes, episodes)


def _check_labels(all_episodes: Sequence[Episode | EpisodeSummary], seen: Sequence[Episode]) -> None:
    """Refuse a teacher whose answers mostly cannot be used; the last error is looked for in the episodes seen."""
    failed, usable = (sum(getattr(one, name) for one in all_episodes) for name in ("num_label_errors", "num_labels"))
    errors = [turn.label_error for episode in seen for turn in episode.turns if turn.label_error]
    if errors and failed > MAX_FAILURE_RATE * (failed + usable):
        raise DataError(f"{failed} of {failed + usable} labels failed; the last error was: {errors[-1]}")


def _is_lost(episode: Episode | EpisodeSummary, goal: Goal) -> bool:
    """Return whether something is broken; an episode that a deadline or a budget cut is not."""
    return not goal.is_useful(episode) and episode.stop_reason not in FINAL


def _give_up_without_hope(done: Done, goal: Goal, last: Episode) -> None:
    """Stop a collection that has nothing but failures, or no label.

    Raises:
        DataError: names the last error.
    """
    lost = sum(_is_lost(summary, goal) for summary in done.values())
    if lost > MAX_FAILURE_RATE * len(done) and last.error:
        raise DataError(f"{lost} of {len(done)} episodes failed; the last error was: {first_line(last.error)}")
    _check_labels([*done.values()], [last])
    if goal.num_labels is not None and not any(map(goal.labels, done.values())):
        reason, count = Counter(summary.stop_reason for summary in done.values()).most_common(1)[0]
        cure = CURE_OF_CONTEXT if reason is StopReason.CONTEXT else "choose another labeler, mixing or filter.keep"
        raise DataError(
            f"{len(done)} episodes, {count} of them ended as {reason}, hold no label that is trained on; {cure}."
        )
