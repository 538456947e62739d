"""Who watches a run? What a person is shown of it, or nobody."""

from __future__ import annotations

from typing import Protocol

from dagger_exp.types import Episode


class Progress(Protocol):
    """Someone who watches."""

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        """A phase of a round begins: `collect` (total in labels or episodes), `train` (steps), `evaluate` (tasks)."""
        ...

    def advance(self, amount: int, *, episode: Episode | None = None, loss: float | None = None) -> None:
        """Some of the total is done: an episode has ended, or a step was taken."""
        ...

    def end_round(self, row: dict[str, float]) -> None:
        """A round is over; `row` holds its metrics."""
        ...

    def warn(self, text: str) -> None:
        """Something deserves attention."""
        ...


class Silent:
    """Watches, and says nothing: the progress of every process but the first."""

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        """Say nothing."""

    def advance(self, amount: int, *, episode: Episode | None = None, loss: float | None = None) -> None:
        """Say nothing."""

    def end_round(self, row: dict[str, float]) -> None:
        """Say nothing."""

    def warn(self, text: str) -> None:
        """Say nothing."""
