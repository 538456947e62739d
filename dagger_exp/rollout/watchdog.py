"""What hangs, and where? Every wait of an episode is written down; one that lasts is named.

It is watched from a thread, because a step that never gives the event loop back hangs everything in it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dagger_exp.protocols import Engine, Policy
from dagger_exp.types import Key

Say = Callable[[str], None]


class Wait(NamedTuple):
    """For what a task waits, and since when on the monotonic clock."""

    what: str
    since: float
    task: asyncio.Task[Any] | None


@dataclass(kw_only=True)
class Watchdog:
    """Watches what episodes wait for.

    Args:
        patience_s: a wait that is longer is named, once.
        say: tells a person; the log is told in any case.
    """

    patience_s: float = 120.0
    say: Say = lambda text: None
    waits: dict[Key, Wait] = field(default_factory=dict, init=False)
    cuts: dict[tuple[int, int], list[str]] = field(default_factory=dict, init=False)
    named: set[Key] = field(default_factory=set, init=False)
    loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)

    @contextmanager
    def waiting(self, key: Key, what: str) -> Iterator[None]:
        """Write down that the turn of this key waits for something, while it does."""
        self.named.discard(key)  # of another attempt
        self.waits[key] = Wait(what, time.monotonic(), asyncio.current_task())
        try:
            yield
        except asyncio.CancelledError:
            self.cuts.setdefault((key.round_index, key.episode_index), []).append(what)
            raise
        finally:
            self.waits.pop(key, None)

    def cut(self, key: Key) -> str:
        """Return what an episode waited for when it was cut, to be told of it once."""
        waits = self.cuts.pop((key.round_index, key.episode_index), [])
        return f" while it waited for {' and '.join(waits)}" if waits else ""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again, while episodes are played."""
        over, self.loop = threading.Event(), asyncio.get_running_loop()
        self.cuts.clear()
        thread = threading.Thread(target=self._watch, args=(over,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(min(self.patience_s / 4, threading.TIMEOUT_MAX)):
            if sentence := self.look():
                logging.getLogger(__name__).warning(sentence)
                self.say(sentence)

    def look(self) -> str:
        """Return a sentence about the waits that have become too long since the last look, "" for none.

        It names the one that blocks all others, or else the longest.
        """
        now, waits = time.monotonic(), self.waits.copy()  # at once: episodes go on meanwhile
        late = {key: wait for key, wait in waits.items() if now - wait.since > self.patience_s}
        new = [key for key in late if key not in self.named]
        self.named |= set(new)
        if not new:
            return ""
        first = self._blocking(now, waits) or min(new, key=lambda key: late[key].since)
        return (
            f"{len(late)} of {len(waits)} episodes wait for more than {self.patience_s:g} s: episode "
            f"{first.episode_index} of round {first.round_index} (task {first.task_id}, turn {first.turn_index}) has"
            f" waited {now - waits[first].since:.0f} s for {waits[first].what}."
        )

    def _blocking(self, now: float, waits: Mapping[Key, Wait]) -> Key | None:
        """Return the wait whose task has not given the event loop back for long, None where no task runs."""
        running = None if self.loop is None else asyncio.current_task(self.loop)
        if running is None:
            return None
        long = (key for key, wait in waits.items() if now - wait.since > self.patience_s / 2)
        return next((key for key in long if waits[key].task is running), None)


def with_address(asked: Policy | Engine) -> str:
    """Return who is asked, and at which address."""
    return f"{asked.id} at {asked.address}" if asked.address else asked.id
