"""What hangs, and where? Every wait of an episode is written down; one that lasts is named.

It is watched from a thread, because a step that never gives the event loop back hangs everything in it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dagger_exp.types import Key

Say = Callable[[str], None]


@dataclass(kw_only=True)
class Watchdog:
    """Watches what episodes wait for.

    Args:
        patience_s: a wait that is longer is named, once.
        say: tells a person; the log is told in any case.
    """

    patience_s: float = 120.0
    say: Say = lambda text: None
    waits: dict[Key, tuple[str, float]] = field(default_factory=dict, init=False)
    named: set[Key] = field(default_factory=set, init=False)

    @contextmanager
    def waiting(self, key: Key, what: str) -> Iterator[None]:
        """Write down that the turn of this key waits for something, while it does."""
        self.named.discard(key)  # of another attempt
        self.waits[key] = (what, time.monotonic())
        try:
            yield
        finally:
            self.waits.pop(key, None)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again, while episodes are played."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over,), name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(self.patience_s / 4):
            if sentence := self.look():
                logging.getLogger(__name__).warning(sentence)
                self.say(sentence)

    def look(self) -> str:
        """Return a sentence about the waits that have become too long since the last look, "" for none."""
        now, waits = time.monotonic(), self.waits.copy()  # at once: episodes go on meanwhile
        late = {key: wait for key, wait in waits.items() if now - wait[1] > self.patience_s}
        new = [key for key in late if key not in self.named]
        self.named |= set(new)
        if not new:
            return ""
        first = min(new, key=lambda key: late[key][1])
        what, since = late[first]
        return (
            f"{len(late)} of {len(waits)} episodes wait for more than {self.patience_s:g} s: episode "
            f"{first.episode_index} of round {first.round_index} (task {first.task_id}, turn {first.turn_index}) has"
            f" waited {now - since:.0f} s for {what}."
        )
