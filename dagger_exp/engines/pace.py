"""When may the next request to a server begin? One pace for all who ask it, in the order in which they come."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime

MAX_PAUSE_S = 60.0
"""Longest pause before a request is tried again, whatever a server asks for."""
FIRST_GAP_S = 0.02
"""Between two requests, after a server that was asked without any pace has said that it is too much."""
MAX_GAP_S = 5.0
QUICKER = 1.05
"""By how much an answer raises the pace: by more than one refusal in 15 requests lowers it."""


class Pace:
    """Spaces requests out: by a rate, by what the server asks for, and by what it refuses.

    Args:
        max_requests_per_s: None for no limit.
    """

    def __init__(self, max_requests_per_s: float | None) -> None:
        self._least_gap_s = 1.0 / max_requests_per_s if max_requests_per_s else 0.0
        self._gap_s, self._next_at, self._slowed_at = self._least_gap_s, 0.0, -math.inf
        self.renew()

    def renew(self) -> None:
        """Begin in an event loop of its own."""
        self._order = asyncio.Lock()

    async def begin(self) -> float:
        """Wait until a request may begin; return when it does, on the monotonic clock."""
        async with self._order:
            while (now := time.monotonic()) < self._next_at:  # noqa: ASYNC110  a moment that may move meanwhile
                await asyncio.sleep(self._next_at - now)
            self._next_at = now + self._gap_s
        return now

    def hold(self, retry_after: str) -> None:
        """Let no request begin before the time that a server asks for."""
        self._next_at = max(self._next_at, time.monotonic() + min(_seconds(retry_after), MAX_PAUSE_S))

    def slow_down(self, began: float) -> None:
        """Halve the pace, once for all refusals of requests that began at the pace before.

        Args:
            began: when the request began that the server refused as one too many.
        """
        if began > self._slowed_at:
            self._slowed_at = time.monotonic()
            self._gap_s = max(self._least_gap_s, min(max(2 * self._gap_s, FIRST_GAP_S), MAX_GAP_S))

    def quicken(self, began: float) -> None:
        """Raise the pace a little, after an answer to a request that began at this pace, up to the rate or to none."""
        if began > self._slowed_at and self._gap_s > self._least_gap_s:
            gap_s = self._gap_s / QUICKER
            self._gap_s = gap_s if gap_s > max(self._least_gap_s, FIRST_GAP_S / 10) else self._least_gap_s


def _seconds(retry_after: str) -> float:
    """Return the seconds of a `Retry-After`, which is a number or a date."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0
