"""May the run go on? Signals that end it early, at a place from where it goes on later.

USR2 and USR1 say that the time limit is near, TERM that the job is preempted or cancelled. While a round is trained,
the step is finished and saved first; everything else is interrupted at once, since what counts is on the disk.
"""

from __future__ import annotations

import signal
from typing import Any

SIGNALS = (signal.SIGUSR2, signal.SIGUSR1, signal.SIGTERM)


class Preempted(KeyboardInterrupt):
    """The run ends here for now. A KeyboardInterrupt, because event loops and Lightning let nothing else through."""


class Preemption:
    """What a process has heard.

    Attributes:
        heard: the first signal, or None.
    """

    def __init__(self) -> None:
        self.heard: signal.Signals | None = None
        self._is_held = False
        self._is_listening = False

    def listen(self) -> None:
        """Hear the signals from now on, whoever else did (submitit and Lightning would requeue too)."""
        self._is_held, self._is_listening = False, True
        for number in SIGNALS:
            signal.signal(number, self._hear)

    def keep_listening(self) -> None:
        """Take the signals back: Lightning's handler of TERM waits for all processes, which wait in theirs."""
        if self._is_listening:
            self.listen()

    def hold(self) -> None:
        """Let no signal interrupt what comes."""
        self._is_held = True

    def release(self) -> None:
        """Let signals interrupt again.

        Raises:
            Preempted: one has come.
        """
        self._is_held = False
        if self.heard is not None:
            raise Preempted

    def _hear(self, number: int, frame: Any) -> None:
        is_first, self.heard = self.heard is None, self.heard or signal.Signals(number)
        if is_first and not self._is_held:
            raise Preempted


PREEMPTION = Preemption()
"""Of this process, as its signals are."""
