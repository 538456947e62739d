"""What may a sandbox use? The same numbers for every kind of sandbox."""

from __future__ import annotations

import asyncio
import logging
import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

from dagger_exp.errors import ConfigError, SandboxError
from dagger_exp.sandboxes import owner

CGROUPS = Path("/sys/fs/cgroup")
GROUP = "dagger-exp "
LEAF = "/dagger-exp"
DIVIDED = "cgroup.subtree_control"
GROUP_LIMITS = dict.fromkeys(("memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"), 1)
GROUP_LIMITS |= {"memory.swap.max": 0, "memory.kmem.tcp.limit_in_bytes": 1}
"""Files of cgroups, of both versions, and which part of the limit goes into each."""
NUMBERS = count()
ATTEMPTS, PAUSE_S = 300, 0.01
SHARED_MIB = 64
"""Of `/dev/shm`, as containers have it."""
MAX_ANSWER_BYTES = 16 << 20
"""Taken from a sandbox at once."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one sandbox.

    Args:
        memory_mib: of all its processes together; memory that they share counts for each.
        max_processes: at the same time, threads included where the system counts them.
        cpu_s: CPU time of one process.
        file_mib: size of one file.
        disk_mib: of `/work`, and again of `/tmp`; it is memory of this machine. There is an inode per 8 KiB.
        max_output_bytes: that are kept of what a script writes: its beginning and its end; at most 16 MiB.

    Raises:
        ConfigError: a limit is out of range.
    """

    memory_mib: int = 2048
    max_processes: int = 256
    cpu_s: int = 1800
    file_mib: int = 256
    disk_mib: int = 512
    max_output_bytes: int = 100_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"sandbox.limits.{name} is {value}; it must be at least 1.")
        if self.max_output_bytes > MAX_ANSWER_BYTES:
            raise ConfigError(f"sandbox.limits.max_output_bytes must be at most {MAX_ANSWER_BYTES}.")

    @property
    def num_inodes(self) -> int:
        """Files that fit: without a bound, empty ones would fill this machine's memory."""
        return self.disk_mib * 128

    @property
    def max_files(self) -> int:
        """Files that are open in all processes, with pipes, sockets and terminals: at most as many pipes as a user may
        have before the next ones get smaller."""
        return 256 + 6 * self.max_processes

    @property
    def total_mib(self) -> int:
        """All that a sandbox may hold: what lies on a memory disk counts, and process 1 must have some left."""
        return self.memory_mib + 2 * self.disk_mib + 2 * SHARED_MIB


async def memory_groups(pid: int, *, waits: bool) -> Path | None:
    """Return the cgroup below which a process and its children can be given groups of their own, if there is one.

    What killed runs have left there is removed.

    Args:
        pid: of the process.
        waits: whether it will move into the group `LEAF` first, beside which others can be made (in version 2).
    """
    for _ in range(ATTEMPTS if waits else 1):
        with suppress(OSError):  # it may have ended
            for line in Path("/proc", str(pid), "cgroup").read_text().splitlines():  # noqa: ASYNC240 - it is no disk
                _, kinds, path = line.split(":", 2)
                is_first = "memory" in kinds.split(",")
                parent = CGROUPS / ("memory" + path if is_first else path.removesuffix(LEAF)[1:])
                is_second = not kinds and path.endswith(LEAF) and "memory" in (parent / DIVIDED).read_text()
                if (is_first or is_second) and os.access(parent, os.W_OK):
                    for left in _left(parent):
                        await remove_group(left)
                    return parent
        await asyncio.sleep(PAUSE_S)
    return None


def _left(parent: Path) -> list[Path]:
    groups = parent.glob(f"{GROUP}*")
    return [group for group in groups if owner.is_gone(group.name.removeprefix(GROUP).rpartition(" ")[0])]


def make_group(parent: Path, num_mib: int) -> tuple[Path, BinaryIO]:
    """Make a cgroup that holds so much memory at most, with what the kernel keeps for it; raises `SandboxError`.

    Returns:
        It, and the file through which a process of one thread enters it.
    """
    group = parent / f"{GROUP}{owner.this()} {next(NUMBERS)}"
    try:
        group.mkdir()
        for name, part in GROUP_LIMITS.items():
            if (group / name).exists():
                (group / name).write_text(str(part * num_mib << 20))
        tasks = group / "tasks"  # in version 1, where the other one takes 10 ms
        return group, (tasks if tasks.exists() else group / "cgroup.procs").open("wb")
    except OSError as error:
        raise SandboxError(f"the cgroup {group} cannot be made: {error.strerror}.") from error


async def remove_group(group: Path) -> None:
    """Remove a cgroup once the last of its processes has ended, which takes a moment after it has closed its files."""
    for _ in range(ATTEMPTS):
        with suppress(OSError):
            await asyncio.to_thread(group.rmdir)
            return
        await asyncio.sleep(PAUSE_S)
    logging.getLogger(__name__).warning("the cgroup %s cannot be removed; the next run tries again", group)
