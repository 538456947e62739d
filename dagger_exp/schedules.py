"""How large is beta? Pure functions of the round; beta is the probability that the teacher acts at a turn.

Every schedule has the same keys. It is `start` in round 0 and for `warmup_rounds` rounds more, reaches `end` in
round ``num_rounds - 1``, stays there, and is never below `floor`. The shapes are those of Ross et al. 2011
(exponential), Bengio et al. 2015, "Scheduled Sampling" (linear, exponential, inverse sigmoid), and cosine and step.
`paper`, max(0.6, 1 - 0.2 r), is `linear` with a floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dagger_exp.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all schedules share: from `start` to `end` along `fraction`, a map of [0, 1] onto [0, 1]."""

    start: float
    end: float
    num_rounds: int
    warmup_rounds: int = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start", "end", "floor"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"schedule.{name} is {getattr(self, name)}; a probability lies in [0, 1].")
        if self.num_rounds < 1 or self.warmup_rounds < 0:
            raise ConfigError("schedule.num_rounds must be at least 1 and schedule.warmup_rounds at least 0.")

    def __call__(self, round_index: int) -> float:
        """Return beta of a round, in [0, 1]."""
        last = self.num_rounds - 1 - self.warmup_rounds
        progress = 0.0 if last <= 0 else min(max((round_index - self.warmup_rounds) / last, 0.0), 1.0)
        if last <= 0 and round_index >= self.num_rounds:
            progress = 1.0
        return max(self.floor, self.value(progress))

    def value(self, progress: float) -> float:
        """Return beta at a progress in [0, 1], before the floor."""
        return self.start + (self.end - self.start) * self.fraction(progress)

    def fraction(self, progress: float) -> float:
        """Return the share of the way from `start` to `end` that is behind."""
        return progress


class Constant(Shape):
    """beta = `start` in every round; `end` is the same."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.end != self.start:
            raise ConfigError("schedule=constant has one beta: set schedule.start alone, or choose schedule=linear.")

    def fraction(self, progress: float) -> float:
        return 0.0


class Linear(Shape):
    """Equal steps from `start` to `end`."""


class Exponential(Shape):
    """Equal factors from `start` to `end`: beta = start * (end / start)^progress; both must be above 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.start, self.end) <= 0.0:
            raise ConfigError(
                "schedule=exponential needs schedule.start and schedule.end above 0; use schedule=linear."
            )

    def value(self, progress: float) -> float:
        return self.start * (self.end / self.start) ** progress


class Cosine(Shape):
    """Half a cosine: slow at both ends."""

    def fraction(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


class InverseSigmoid(Shape):
    """A logistic curve, scaled so that it meets both ends."""

    def fraction(self, progress: float) -> float:
        low, here, high = (1.0 / (1.0 + math.exp(-10.0 * (x - 0.5))) for x in (0.0, progress, 1.0))
        return (here - low) / (high - low)


class Step(Shape):
    """`start` for the first half of the rounds after the warm-up, `end` for the second."""

    def fraction(self, progress: float) -> float:
        return 0.0 if progress < 0.5 else 1.0


@dataclass(frozen=True, kw_only=True)
class Ramp:
    """A length in turns that grows or shrinks with the round: start + step * round_index, within 0 and cap."""

    start: int
    step: int
    cap: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.cap:
            raise ConfigError("a ramp needs 0 <= start <= cap.")

    def __call__(self, round_index: int) -> int:
        """Return the length of a round, in turns."""
        return min(max(self.start + self.step * round_index, 0), self.cap)
