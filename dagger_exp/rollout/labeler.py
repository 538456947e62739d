"""What would the teacher do here? Labels for visited states."""

from __future__ import annotations

from dagger_exp.errors import ConfigError, LabelError, PolicyError
from dagger_exp.protocols import Env, Policy
from dagger_exp.types import Actor, Message, Response, State

TURNS = ("all", "student", "teacher", "none")


class Labeler:
    """Asks the teacher at visited states; where the teacher acted, the label is its action and costs no query.

    Args:
        turns: which turns get a label, by who executed them: `all` (DAgger), `student`, `teacher` or `none`.
    """

    def __init__(self, *, turns: str = "all") -> None:
        if turns not in TURNS:
            raise ConfigError(f"labeler.turns is {turns!r}; choose one of {', '.join(TURNS)}.")
        self.turns = turns

    async def label(self, state: State, actor: Actor, action: Response, teacher: Policy, env: Env) -> Message | None:
        """Return the label of a state before `action` is executed in it, None where none is asked.

        Raises:
            LabelError: the teacher failed.
        """
        if self.turns not in ("all", actor.value):
            return None
        if actor is Actor.TEACHER:
            return action.message
        try:
            return (await teacher.act(state, env)).message
        except PolicyError as error:
            raise LabelError(f"The teacher {teacher.id!r} gave no label: {error}") from error
