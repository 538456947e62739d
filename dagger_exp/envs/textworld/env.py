"""One episode of one TextWorld game, with TextWorld's own winning policy as the teacher of every state."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dagger_exp.envs.textworld.rendering import Rendering
from dagger_exp.errors import EnvError
from dagger_exp.seeding import integer
from dagger_exp.types import Key, Message, StepResult, StopReason


def start_game(path: Path) -> Any:
    """Open a game, always with the same requested infos: they change the feedback that a game prints."""
    import textworld
    from jericho import UnsupportedGameWarning

    infos = textworld.EnvInfos(policy_commands=True, admissible_commands=True, facts=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsupportedGameWarning)  # TextWorld itself does what Jericho cannot.
        return textworld.start(str(path), request_infos=infos)


class TextWorldEnv:
    """Plays one game. Only admissible commands reach it; any other is refused, and the game stays as it was.

    So its meta commands (restart, undo, quit) cannot cut the teacher's track of the state. The student sees
    rendered observations alone: the state also holds what it must not see, the winning policy above all.
    """

    def __init__(self, path: Path, rendering: Rendering, show_admissible_commands: bool, instruction: str) -> None:
        self._path = path
        self._rendering = rendering
        self._show_admissible_commands = show_admissible_commands
        self._instruction = instruction
        self._game: Any = None
        self._state: Any = None
        self._is_over = False

    async def reset(self) -> Sequence[Message]:
        """Begin the game. Raises `EnvError` at a second call and where the game cannot be opened."""
        if self._game is not None:
            raise EnvError(f"the env of {self._path.name} was used before; make a fresh one")
        try:
            self._game = start_game(self._path)
            self._state = self._game.reset()
        except (OSError, ValueError, LookupError) as error:  # A damaged game; TextWorld has no type for it.
            raise EnvError(f"TextWorld could not open {self._path}: {error!r}") from error
        objective = self._rendering.text(self._state["objective"])
        opening = Message("user", f"{objective}\n{self._observe()}".lstrip())
        system = [Message("system", self._rendering.text(self._instruction))] if self._instruction else []
        return [*system, opening]

    async def step(self, action: Message) -> StepResult:
        """Execute a command if it is possible now. Raises `EnvError` after the end of the game."""
        # TextWorld itself would go on after the end, and would answer that the game is not over.
        if self._state is None or self._is_over:
            raise EnvError(f"a step in {self._path.name} before its reset or after its end")
        command = self._commands().get(self._rendering.text(action.content))
        if command is None:
            refusal = self._rendering.refusal(self._state) + self._choices()
            return StepResult(Message("user", refusal), valid=False)
        self._state, _, self._is_over = self._game.step(command)
        reward = 1.0 if self._state["won"] else 0.0
        return StepResult(Message("user", self._observe()), reward, self._stop_reason())

    async def close(self) -> None:
        """Free the interpreter of a compiled game."""
        if self._game is not None:
            self._game.close()

    def expert_action(self) -> Message:
        """Return the first command of TextWorld's winning policy. Raises `EnvError` where there is none."""
        if not self._state["policy_commands"]:  # Empty at the end of a game.
            raise EnvError(f"TextWorld has no winning policy in this state of {self._path.name}")
        return Message("assistant", self._rendering.text(self._state["policy_commands"][0]))

    def random_action(self, key: Key) -> Message:
        """Return one of the commands that are possible now, drawn evenly."""
        commands = self.admissible_commands()
        return Message("assistant", commands[integer(key, "random action", len(commands))])

    def admissible_commands(self) -> Sequence[str]:
        """Return the commands that are possible now, sorted, as they are to be written."""
        return tuple(self._commands())

    def _commands(self) -> dict[str, str]:
        return {self._rendering.text(command): command for command in self._state["admissible_commands"]}

    def _observe(self) -> str:
        return self._rendering.observation(self._state) + self._choices()

    def _choices(self) -> str:
        is_shown = self._show_admissible_commands and not self._is_over
        return self._rendering.choices(self.admissible_commands()) if is_shown else ""

    def _stop_reason(self) -> StopReason | None:
        if not self._is_over:
            return None
        return StopReason.SOLVED if self._state["won"] else StopReason.UNSOLVED
