"""What follows from a server's refusal: whether the request is retried, and how fast all requests go on."""

from __future__ import annotations

import asyncio
import json
import math
import time
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

from dagger_exp.errors import ConfigError, EngineError

WITHOUT_CODE = 200
"""Status of an error that comes inside a good answer without a code; it may pass."""
TOO_LONG = ("maximum context length", "context_length_exceeded", "max_model_len", "longer than the maximum")
FINAL = ('"insufficient_quota"', "max_lora_rank")
"""Comes with a status that may pass, 429 or vLLM's 500, although no pause helps."""
PASSING_CODES = ("None", "server", "overload", "timeout", "unavailable")

MAX_PAUSE_S = 60.0
"""Longest pause before a retry, whatever a server asks for."""
FIRST_GAP_S = 0.02
"""Gap between requests after the first 429 of a server that was asked without any gap."""
MAX_GAP_S = 5.0
SPEED_UP = 1.05
"""How much an answer shortens the gap. One 429 in 15 requests, which doubles it, then leaves it as it is."""


class TransientError(EngineError):
    """A failure that may pass."""


class MissingError(ConfigError):
    """A server has nothing at a path."""


class SilentError(ConfigError):
    """A server gives no information, which may pass."""


def may_pass(status: int, text: str = "") -> bool:
    """Return whether the same request may succeed later."""
    is_passing = status in (WITHOUT_CODE, 408, 409, 425, 429) or status >= 500
    return is_passing and not any(words in text for words in FINAL)


def is_too_long(text: str) -> bool:
    """Return whether the server says that the prompt is longer than its model reads."""
    return any(words in text for words in TOO_LONG)


def status_within(told: Any) -> int | None:
    """Return the status of an error inside a good answer, which some providers pass on; None where there is none."""
    error = told.get("error") if isinstance(told, dict) and not told.get("choices") else None
    if not error:
        return None
    code = str(error.get("code") if isinstance(error, dict) else None)
    if code.isdecimal():
        return int(code) if int(code) in range(400, 600) else WITHOUT_CODE
    if "rate_limit" in code:
        return 429
    return WITHOUT_CODE if any(word in code for word in PASSING_CODES) else 400  # a mistake in the request


def is_aborted(told: Any) -> bool:
    """Return whether the server stopped in the middle of an answer, as vLLM does when it is shut down."""
    with suppress(KeyError, TypeError):
        return any(choice["finish_reason"] == "abort" for choice in told["choices"])
    return False


def message(text: str) -> str:
    """Return the message of an error's body."""
    try:
        error = json.loads(text).get("error", text)
        return str(error.get("message", text) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text


def pause_s(retry_after: str) -> float:
    """Return the seconds that a `Retry-After` asks for, which is a number or a date."""
    with suppress(ValueError):
        return max(0.0, float(retry_after))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    return 0.0


class Pace:
    """Spaces requests out: by a fixed rate, by the pauses a server asks for, and by its 429s.

    Args:
        max_requests_per_s: None for no limit.
    """

    def __init__(self, max_requests_per_s: float | None) -> None:
        self._least_gap_s = 1.0 / max_requests_per_s if max_requests_per_s else 0.0
        self._gap_s, self._next_at, self._slowed_at = self._least_gap_s, 0.0, -math.inf
        self._order = asyncio.Lock()

    async def begin(self) -> float:
        """Wait until the next request may be sent, and return that time on the monotonic clock."""
        async with self._order:
            while (now := time.monotonic()) < self._next_at:  # noqa: ASYNC110  the time may move meanwhile
                await asyncio.sleep(self._next_at - now)
            self._next_at = now + self._gap_s
        return now

    def hold(self, pause_s: float) -> None:
        """Send nothing for so many seconds."""
        self._next_at = max(self._next_at, time.monotonic() + min(pause_s, MAX_PAUSE_S))

    def slow_down(self, began: float) -> None:
        """Double the gap after a 429, once for all requests that began before it was doubled last."""
        if began > self._slowed_at:
            self._slowed_at = time.monotonic()
            self._gap_s = max(self._least_gap_s, min(max(2 * self._gap_s, FIRST_GAP_S), MAX_GAP_S))

    def speed_up(self, began: float) -> None:
        """Shorten the gap a little after an answer, down to that of the fixed rate."""
        if began > self._slowed_at and self._gap_s > self._least_gap_s:
            gap_s = self._gap_s / SPEED_UP
            self._gap_s = gap_s if gap_s > max(self._least_gap_s, FIRST_GAP_S / 10) else self._least_gap_s
