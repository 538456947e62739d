"""How several processes share a run."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy


def ddp(*, round_timeout_hours: float) -> DDPStrategy:
    """Return data parallelism whose processes wait this long for the first one, which collects and evaluates alone.

    Lightning's own limit, 30 minutes at most, would end a run in its first long collection.
    """
    return DDPStrategy(timeout=timedelta(hours=round_timeout_hours))
