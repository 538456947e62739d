"""Which visited states does the teacher label?"""

from __future__ import annotations

from dagger_exp.errors import ConfigError
from dagger_exp.types import Actor

TURNS = ("all", "student", "teacher", "none")


class Labeler:
    """Decides which turns get the teacher's action as a label; where the teacher acted, that costs no query.

    Args:
        turns: by who executed them: `all` (DAgger), `student`, `teacher` or `none`.
    """

    def __init__(self, *, turns: str = "all") -> None:
        if turns not in TURNS:
            raise ConfigError(f"labeler.turns is {turns!r}; choose one of {', '.join(TURNS)}.")
        self.turns = turns

    def wants(self, actor: Actor) -> bool:
        """Return whether a turn that this actor executes is labelled."""
        return self.turns in ("all", actor.value)
