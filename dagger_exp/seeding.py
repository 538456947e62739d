"""Which coin? Every random choice is a pure function of where it is made and what for.

Nothing here depends on the order of calls, on concurrency, on a restart or on `PYTHONHASHSEED`.
"""

from __future__ import annotations

import hashlib

from dagger_exp.types import Key


def draw(key: Key, purpose: str) -> int:
    """Return 64 uniformly distributed bits for this key and purpose."""
    text = "\x1f".join((*map(str, key), purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def uniform(key: Key, purpose: str) -> float:
    """Return a number in [0, 1) for this key and purpose (53 bits)."""
    return (draw(key, purpose) >> 11) / (1 << 53)


def integer(key: Key, purpose: str, below: int) -> int:
    """Return an integer in {0, ..., below - 1} for this key and purpose."""
    return draw(key, purpose) % below
