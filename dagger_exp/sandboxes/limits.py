"""What may a sandbox use? The same numbers for every kind of sandbox."""

from __future__ import annotations

from dataclasses import dataclass

from dagger_exp.errors import ConfigError

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
