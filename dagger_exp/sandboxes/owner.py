"""To which process does a leftover belong, and is that process still there?"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path


def this() -> str:
    """Return a name of this process that no other process has, on any machine and after any reboot."""
    return f"{socket.gethostname()} {_boot()} {os.getpid()} {_started(os.getpid())}"


def is_gone(name: str) -> bool:
    """Return whether a process of this machine has ended; that of another one is never said to be gone."""
    with suppress(ValueError):
        host, boot, pid, started = name.split(" ")
        return host == socket.gethostname() and (boot != _boot() or started != _started(int(pid)))
    return False


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _started(pid: int) -> str:
    """Return when a process began, in ticks; empty where there is none."""
    with suppress(OSError):
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19]
    return ""
