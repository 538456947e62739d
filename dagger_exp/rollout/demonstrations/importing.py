"""Round 0 from files: the teacher's episodes are demonstrations that somebody else has recorded.

Each is played once more by the runner, with the recorded teacher at every turn, so that it becomes the very record of
a rollout. What cannot be read or played is set aside and counted by its reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dagger_exp.errors import ConfigError
from dagger_exp.policies.mixture import TeacherOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Scaffold
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.demonstrations.actions import with_readable_actions
from dagger_exp.rollout.demonstrations.files import found_files, rows
from dagger_exp.rollout.demonstrations.formats import FORMATS, Demonstration, read_demonstration
from dagger_exp.rollout.demonstrations.messages import Unreadable, with_text_calls
from dagger_exp.rollout.demonstrations.recordings import Recordings
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.runner import Runner
from dagger_exp.rollout.turns import UNKNOWN_WORDS
from dagger_exp.store.store import Store
from dagger_exp.store.view import sha256
from dagger_exp.types import Episode, Key, StopReason, Task

ENDINGS = (StopReason.SOLVED, StopReason.UNSOLVED)
"""How a demonstration ends that was played whole."""


@dataclass(frozen=True)
class Reading:
    """What files held: demonstrations in the order of their tasks' ids, and how many are of no use, by reason.

    `actions` counts what became of their actions, where a scaffold reads them.
    """

    demonstrations: list[Demonstration] = field(default_factory=list)
    set_aside: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        return "; ".join(f"{count} x {reason}" for reason, count in self.set_aside.most_common())


class Demonstrations:
    """Files of trajectories.

    Args:
        format: whose they are: `openhands`, `swe_agent`, `swe_smith`, or plain `messages`.
        files: paths and globs, one or several: JSON, JSON lines or Parquet.
        scaffold: of the run, which has to read every action; None takes them as they are.

    Raises:
        ConfigError: no such format, or a path or glob that names no file.
    """

    def __init__(
        self,
        *,
        format: str,  # noqa: A002 - as the YAML's key
        files: str | Sequence[str],
        scaffold: Scaffold | None = None,
    ) -> None:
        if format not in FORMATS:
            raise ConfigError(f"demonstrations.format is {format!r}; choose one of {', '.join(FORMATS)}.")
        self.scaffold = scaffold
        self.format, self.paths = format, found_files([files] if isinstance(files, str) else files)

    def read(self) -> Reading:
        """Return what the files hold; the order of files and rows decides between demonstrations of one task."""
        reading = Reading()
        for path in self.paths:
            for index, row in enumerate(rows(path)):
                try:
                    demonstration = read_demonstration(row, self.format, _default_id(path, index))
                except Unreadable as reason:
                    reading.set_aside[str(reason)] += 1
                else:
                    reading.demonstrations.append(demonstration)
        reading.demonstrations.sort(key=lambda found: found.task_id)
        return reading if self.scaffold is None else _readable(reading, self.scaffold)

    def collect(self, runner: Runner, store: Store, seed: int, on_episode: Callable[[Episode], None]) -> list[Episode]:
        """Import all of them as round 0, close it, and return its episodes.

        Args:
            runner: of the run; its chat, lengths and limits hold here, too.
            store: where the episodes are committed.
            seed: of the run.
            on_episode: is told of each.

        Raises:
            ConfigError: none of them can be used.
        """
        begin, reading = time.monotonic(), self.read()
        player = _player(runner, reading, self.format)
        episodes = asyncio.run(_import(player, reading, store, seed, on_episode))
        total = len(episodes) + reading.set_aside.total()
        if not episodes:
            raise ConfigError(f"none of the {total} trajectories of demonstrations.files can be used: {reading}.")
        _tell(runner, reading, total)
        counts = rollout_metrics(episodes) | {"round/collect_s": time.monotonic() - begin} | player.budget.metrics()
        store.close_round(0, len(episodes), counts, origin=self._origin(reading))
        return episodes

    def _origin(self, reading: Reading) -> dict[str, Any]:
        return {
            "format": self.format,
            "files": {str(path): sha256(path) for path in self.paths},
            "set_aside": dict(reading.set_aside.most_common()),
            "actions": dict(reading.actions.most_common()),
            "num_ungraded": sum(not found.is_graded for found in reading.demonstrations),
        }


def _default_id(path: Path, index: int) -> str:
    """Return a task id for a row that names none: logs of one task are named after it."""
    return path.name.partition(".traj")[0] if ".traj" in path.name else f"{path.stem}-{index:06d}"


def _readable(reading: Reading, scaffold: Scaffold) -> Reading:
    """Return what the scaffold can read of it."""
    found = Reading(set_aside=reading.set_aside)
    for demonstration in reading.demonstrations:
        try:
            readable = with_readable_actions(demonstration, scaffold, scaffold.tools, found.actions)
        except Unreadable as reason:
            found.set_aside[str(reason)] += 1
        else:
            found.demonstrations.append(readable)
    return found


def _player(runner: Runner, reading: Reading, teacher_id: str) -> Runner:
    """Return a runner that plays the demonstrations; calls in text are calls where the student has tools to call."""
    tools: Sequence[Any] = runner.chat.tools
    if tools:
        for place, found in enumerate(reading.demonstrations):
            actions = tuple(with_text_calls(action, tools) for action in found.actions)
            reading.demonstrations[place] = replace(found, actions=actions)
    return replace(
        runner,
        world=Recordings(reading.demonstrations),
        teacher=ScriptedPolicy(id=teacher_id),
        mixing=TeacherOnly(),
        labeler=Labeler(turns="teacher"),
        max_attempts=1,
        budget=TeacherBudget(),
    )


async def _import(
    player: Runner, reading: Reading, store: Store, seed: int, on_episode: Callable[[Episode], None]
) -> list[Episode]:
    episodes: list[Episode] = []
    for task in player.world.tasks("train"):
        try:
            episode = await _played(player, task, Key(seed, 0, task.id, len(episodes)))
        except Unreadable as reason:
            reading.set_aside[str(reason)] += 1
        else:
            store.commit(episode)
            on_episode(episode)
            episodes.append(episode)
    return episodes


async def _played(player: Runner, task: Task, key: Key) -> Episode:
    """Return a demonstration as an episode.

    Raises:
        Unreadable: the student's template, vocabulary or length does not allow it.
    """
    try:
        episode = await player.run(task, key)
    except ConfigError as error:  # of its chat template
        raise Unreadable(str(error).rstrip(".")) from error
    if episode.stop_reason is StopReason.CONTEXT or _num_tokens(episode) > player.max_context_tokens:
        raise Unreadable("it is longer than student.max_context_tokens")
    if episode.stop_reason not in ENDINGS:
        reason = episode.error.partition(": ")[2].rstrip(".") or str(episode.stop_reason)
        raise Unreadable(UNKNOWN_WORDS if reason.startswith(UNKNOWN_WORDS) else reason)
    return episode


def _num_tokens(episode: Episode) -> int:
    """Return the length of the longest sequence: all of the last turn."""
    if not episode.turns:
        return 0
    return len(episode.prompt_ids(len(episode.turns) - 1)) + len(episode.turns[-1].response_ids)


def _tell(runner: Runner, reading: Reading, total: int) -> None:
    """Say what is not as the files would have it."""
    num_ungraded = sum(not found.is_graded for found in reading.demonstrations)
    sentences = []
    if reading.actions.keys() - {"kept"}:
        counts = ", ".join(f"{count} {how}" for how, count in reading.actions.most_common())
        sentences.append(f"actions of demonstrations: {counts}; the scaffold reads all that are imported.")
    if reading.set_aside:
        sentences.append(f"{reading.set_aside.total()} of {total} demonstrations are set aside: {reading}.")
    if num_ungraded:
        sentences.append(
            f"{num_ungraded} demonstrations have no grade: those that were submitted count as solved, others do not."
        )
    for sentence in sentences:
        logging.getLogger(__name__).warning(sentence)
        runner.watchdog.say(sentence)
