"""Which visited states does the teacher label, and what else does it say of them?"""

from __future__ import annotations

from dagger_exp.errors import ConfigError
from dagger_exp.types import Actor

TURNS = ("all", "student", "teacher", "none")


class Labeler:
    """Decides which turns get the teacher's action as a label; where the teacher acted, that costs no query.

    Args:
        turns: by who executed them: `all` (DAgger), `student`, `teacher` or `none`.
        logprobs: whether the teacher also scores the tokens of the student's turns; it must share its vocabulary.
        num_top: how many of the likeliest tokens are recorded at each of their places.
    """

    def __init__(self, *, turns: str = "all", logprobs: bool = False, num_top: int = 0) -> None:
        if turns not in TURNS:
            raise ConfigError(f"labeler.turns is {turns!r}; choose one of {', '.join(TURNS)}.")
        if num_top < 0 or (num_top and not logprobs):
            raise ConfigError(f"labeler.num_top is {num_top}; it is at least 0, and needs labeler.logprobs=true.")
        self.turns, self.logprobs, self.num_top = turns, logprobs, num_top

    def wants(self, actor: Actor) -> bool:
        """Return whether a turn that this actor executes is labelled."""
        return self.turns in ("all", actor.value)
