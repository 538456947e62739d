"""Episodes that go from turn to turn together, for an engine that generates for all of them at once."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from dagger_exp.rollout.runner import Runner
from dagger_exp.types import Actor, Episode, Key

PATIENCE = 0.25
"""Share of the longest turn that an episode waits for others, so that one that hangs takes no turn from them."""


class LockStep(Protocol):
    """An engine that `is_lock_step`."""

    def members(
        self, tasks: Mapping[Key, asyncio.Task[Any]], next_turn: Callable[[Key], float], patience_s: float
    ) -> AbstractContextManager[None]:
        """Generate for a turn when each of these episodes, not one of which has begun, waits, asks later or is over.

        Args:
            tasks: by the key of the episode, whose turn is -1.
            next_turn: the next turn after that of a key at which its episode asks; infinity for none.
            patience_s: what waits longer for others is answered without them.
        """
        ...


async def in_lock_step(runner: Runner, episodes: Mapping[Key, Coroutine[Any, Any, Episode]]) -> list[Episode]:
    """Play these episodes.

    Who asks the engine at a turn is known ahead, since a mixing is a pure function of the key: an episode that the
    teacher plays now is not waited for. A repeated attempt goes through the turns before by itself; where several are
    repeated, those that come to a turn at the same time go through it together.
    """

    def next_turn(key: Key) -> float:
        turns = (key._replace(turn_index=turn) for turn in range(key.turn_index + 1, runner.world.max_turns))
        own = (turn for turn in turns if runner.mixing.choose(turn).actor is Actor.STUDENT)
        return next((turn.turn_index for turn in own), math.inf)

    tasks = {key._replace(turn_index=-1): asyncio.create_task(play) for key, play in episodes.items()}
    with cast(LockStep, runner.student.engine).members(tasks, next_turn, PATIENCE * runner.turn_timeout_s):
        return await asyncio.gather(*tasks.values())
