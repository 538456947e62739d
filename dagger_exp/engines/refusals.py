"""What does a server say when it gives no answer, and may that pass?"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from dagger_exp.errors import ConfigError, EngineError

WITHOUT_CODE = 200
"""Status of an error that stands in a good answer and has no code: it may pass."""
TOO_LONG = ("maximum context length", "context_length_exceeded", "max_model_len", "longer than the maximum")
FINAL = ('"insufficient_quota"', "max_lora_rank")
"""Said with a status that passes, 429 or vLLM's 500, of what no pause mends."""
VARYING = re.compile(r"(?<!\S)(?<!answers )\S*\d\S*")
"""What differs from one refusal to the next, as the tokens used and the number of the request; not the status."""


class TransientError(EngineError):
    """A failure that may pass."""


class MissingError(ConfigError):
    """A server has nothing at a path."""


class SilentError(ConfigError):
    """A server tells nothing, which may pass."""


def may_pass(status: int) -> bool:
    return status in (WITHOUT_CODE, 408, 409, 425, 429) or status >= 500


def is_final(text: str) -> bool:
    return any(words in text for words in FINAL)


def is_too_long(text: str) -> bool:
    return any(words in text for words in TOO_LONG)


def status_within(told: Any) -> int | None:
    """Return the status of an error that stands in a good answer, as of a provider behind another; None for none."""
    error = told.get("error") if isinstance(told, dict) and not told.get("choices") else None
    if not error:
        return None
    code = str(error.get("code") if isinstance(error, dict) else None)
    if code.isdecimal():
        return int(code) if int(code) in range(400, 600) else WITHOUT_CODE
    if "rate_limit" in code:
        return 429
    passes = ("None", "server", "overload", "timeout", "unavailable")
    return WITHOUT_CODE if any(word in code for word in passes) else 400  # a mistake in the request


def is_given_up(told: Any) -> bool:
    """Return whether an answer ends where its server did: vLLM sends what it has written until it is stopped."""
    with suppress(KeyError, TypeError):
        return any(choice["finish_reason"] == "abort" for choice in told["choices"])
    return False


def message(text: str) -> str:
    """Return what an error body says."""
    try:
        error = json.loads(text).get("error", text)
        return str(error.get("message", text) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        return text


def kind(said: str) -> str:
    """Return what is the same in all refusals for one reason."""
    return VARYING.sub("", said)
