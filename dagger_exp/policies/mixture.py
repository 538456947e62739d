"""Who acts? The mixtures of the paper; each choice is a pure function of its key.

Turn level (DAgger): at each turn, independently, the teacher acts with probability beta. Single switch (paper Eq. 9):
kappa ~ U{0..T_max} per episode, one actor before turn kappa, the other from it on. Hand-over is at turn boundaries.
"""

from __future__ import annotations

from dataclasses import dataclass

from dagger_exp.protocols import Schedule
from dagger_exp.seeding import integer, uniform
from dagger_exp.types import Actor, Choice, Key


@dataclass(frozen=True, kw_only=True)
class TurnMixture:
    """A coin per turn: the teacher acts with probability `schedule(round_index)`."""

    schedule: Schedule
    max_turns: Schedule | None = None

    def beta(self, round_index: int) -> float:
        return self.schedule(round_index)

    def choose(self, key: Key) -> Choice:
        beta, coin = self.beta(key.round_index), uniform(key, "actor")
        return Choice(Actor.TEACHER if coin < beta else Actor.STUDENT, beta=beta, coin=coin)


@dataclass(frozen=True, kw_only=True)
class SwitchMixture:
    """One hand-over per episode, before turn kappa ~ U{0..t_max(round)}.

    The student acts first and the teacher finishes; with `teacher_first` the other way round. A kappa beyond the
    end of the episode leaves it to one actor. `max_turns` caps the episodes of a round, for curricula.
    """

    t_max: Schedule
    teacher_first: bool = False
    max_turns: Schedule | None = None

    def beta(self, round_index: int) -> None:
        return None

    def choose(self, key: Key) -> Choice:
        kappa = integer(key._replace(turn_index=0), "kappa", int(self.t_max(key.round_index)) + 1)
        before = key.turn_index < kappa
        return Choice(Actor.TEACHER if before == self.teacher_first else Actor.STUDENT, kappa=kappa)


@dataclass(frozen=True, kw_only=True)
class StudentOnly:
    """The student acts at every turn, in episodes of at most `max_turns(round)` turns (a curriculum)."""

    max_turns: Schedule | None = None

    def beta(self, round_index: int) -> None:
        return None

    def choose(self, key: Key) -> Choice:
        return Choice(Actor.STUDENT)


@dataclass(frozen=True, kw_only=True)
class TeacherOnly:
    """The teacher acts at every turn: behaviour cloning."""

    max_turns: Schedule | None = None

    def beta(self, round_index: int) -> None:
        return None

    def choose(self, key: Key) -> Choice:
        return Choice(Actor.TEACHER)
