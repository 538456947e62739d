"""One episode of a scaffold in a sandbox: message after message, and when it is stuck."""

from __future__ import annotations

from dataclasses import replace

from dagger_exp.errors import MalformedAction
from dagger_exp.protocols import Sandbox, Scaffold
from dagger_exp.types import Message, StepResult, StopReason, ToolCall

LOOP_LENGTH = 3
"""As many identical failing actions in a row are a loop."""


class ScaffoldSession:
    """Reads actions, runs them, and ends an episode that gets nowhere; one object per episode.

    Args:
        scaffold: of the run.
        sandbox: of the episode; who opened it closes it.
        max_malformed: as many malformed actions in a row end the episode.
    """

    def __init__(self, scaffold: Scaffold, sandbox: Sandbox, max_malformed: int = 5) -> None:
        self.scaffold, self.sandbox, self.max_malformed = scaffold, sandbox, max_malformed
        self._num_malformed = self._num_same = 0
        self._failed: ToolCall | Message | None = None

    async def step(self, message: Message) -> tuple[StepResult, bool]:
        """Execute one action.

        Returns:
            What came of it, with `loop` or `invalid_actions` where the episode ends for that, and whether the action
            says that the task is done: then it is the env's to grade, and to answer.

        Raises:
            SandboxError: the sandbox is gone.
        """
        try:
            call = self.scaffold.read(message)
        except MalformedAction as error:
            self._num_malformed += 1
            observation = Message("user", str(error))
            return self._judged(StepResult(observation, valid=False, failed=True), message), False
        self._num_malformed = 0
        if self.scaffold.is_submit(call):
            return StepResult(Message("user", "The task is submitted.")), True
        return self._judged(await self.scaffold.run(call, self.sandbox), call), False

    def _judged(self, result: StepResult, action: ToolCall | Message) -> StepResult:
        """Return a result with the reason to stop, if it gives one."""
        is_same = result.failed and action == self._failed
        self._num_same = self._num_same + 1 if is_same else 1
        self._failed = action if result.failed else None
        if self._num_malformed >= self.max_malformed:
            return replace(result, stop_reason=StopReason.INVALID_ACTIONS)
        if result.failed and self._num_same >= LOOP_LENGTH:
            return replace(result, stop_reason=StopReason.LOOP)
        return result
