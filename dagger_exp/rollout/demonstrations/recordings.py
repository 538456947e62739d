"""A world whose tasks somebody else has played: its envs answer as they did then, and its teacher acts as they did.

So a demonstration is imported by playing it: tokens, turns and limits are those that a rollout would have had.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass

from dagger_exp.rollout.demonstrations.formats import Demonstration
from dagger_exp.seeding import integer
from dagger_exp.types import Key, Message, StepResult, StopReason, Task


class Recordings:
    """The world.

    Args:
        demonstrations: in the order in which they are imported.
    """

    def __init__(self, demonstrations: Sequence[Demonstration]) -> None:
        self.demonstrations = demonstrations
        self.max_turns = max((len(found.actions) for found in demonstrations), default=0)

    def tasks(self, split: str) -> Sequence[Task]:
        """Return a task for each demonstration; all are for training."""
        found = self.demonstrations if split == "train" else ()
        return [Task(one.task_id, split, {"demonstration": one}) for one in found]

    def make(self, task: Task) -> RecordedEnv:
        """Return an env at the beginning of the demonstration."""
        return RecordedEnv(task.data["demonstration"])

    def vocabulary(self) -> list[str]:
        """Return nothing: text is free."""
        return []

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Need nothing."""
        return nullcontext()


@dataclass
class RecordedEnv:
    """One demonstration, played again; whatever is done, it goes on as it did."""

    demonstration: Demonstration
    turn_index: int = 0

    async def reset(self) -> Sequence[Message]:
        return self.demonstration.opening

    async def step(self, action: Message) -> StepResult:
        self.turn_index += 1
        if self.turn_index < len(self.demonstration.actions):
            return StepResult(self.demonstration.observations[self.turn_index - 1])
        solved = self.demonstration.solved
        reason = StopReason.SOLVED if solved else StopReason.UNSOLVED
        return StepResult(Message("user", ""), reward=float(solved), stop_reason=reason)

    async def close(self) -> None:
        return None

    def expert_action(self) -> Message:
        """Return what was done at this turn."""
        return self.demonstration.actions[self.turn_index]

    def random_action(self, key: Key) -> Message:
        """Return what was done at some turn."""
        return self.demonstration.actions[integer(key, "recorded", len(self.demonstration.actions))]
