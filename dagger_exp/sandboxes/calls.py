"""Which system calls may a command make? A filter that the kernel runs before each of them."""

from __future__ import annotations

import os
import struct

from dagger_exp.errors import SandboxError

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Name in audit, and column of the numbers below."""
CALLS = (
    {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "prlimit64": (302, 261)}
    | {"unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "io_uring_setup": (425, 425)}
    | {"memfd_create": (319, 279), "memfd_secret": (447, 447), "perf_event_open": (298, 241)}
    | {"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "userfaultfd": (323, 282)}
    | {"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)}
)
EXAMINED = ("clone", "clone3", "socket", "prlimit64")
"""The other calls are refused: they reach past the namespaces, or hold memory that is no process's."""
NAMESPACES = 0x7E020000
"""The flags of `clone` that make one; in a user namespace of its own a command has all capabilities."""
FAMILIES = (1, 2, 10, 16)
"""Of sockets: unix, IPv4, IPv6, netlink. Others, as vsock, know no network namespace."""
SECOND_NUMBERS = 0x40000000
EPERM, ENOSYS, EAFNOSUPPORT = 1, 38, 97
LOAD, EQUAL, AT_LEAST, ANY_BIT, VERDICT = 0x20, 0x15, 0x35, 0x45, 0x06
AT_NUMBER, AT_MACHINE, AT_FIRST_ARGUMENT = 0, 4, 16
ALLOW = (VERDICT, 0, 0, 0x7FFF0000)
Line = tuple[int, int, int, int]
"""Operation, lines to skip where it holds, lines to skip where not, operand."""


def call_filter() -> bytes:
    """Return a BPF program for this machine; raises `SandboxError` where its numbers are not known."""
    name = os.uname().machine
    if name not in MACHINES:
        raise SandboxError(f"sandboxes know the system calls of {' and '.join(MACHINES)}, and not those of {name}.")
    machine, column = MACHINES[name]
    number = {name: numbers[column] for name, numbers in CALLS.items()}
    lines: list[Line] = [(LOAD, 0, 0, AT_MACHINE), (EQUAL, 1, 0, machine), _refused(ENOSYS), (LOAD, 0, 0, AT_NUMBER)]
    lines += [(AT_LEAST, 0, 1, SECOND_NUMBERS), _refused(ENOSYS)]  # the same calls by other numbers
    lines += [(EQUAL, 0, 1, number["clone3"]), _refused(ENOSYS)]  # its flags are out of sight; libc takes clone then
    for refused in sorted(number.keys() - EXAMINED):
        lines += [(EQUAL, 0, 1, number[refused]), _refused(EPERM)]
    first = (LOAD, 0, 0, AT_FIRST_ARGUMENT)
    lines += [(EQUAL, 0, 4, number["clone"]), first, (ANY_BIT, 0, 1, NAMESPACES), _refused(EPERM), ALLOW]
    lines += [(EQUAL, 0, 4, number["prlimit64"]), first, (EQUAL, 0, 1, 1), _refused(EPERM), ALLOW]  # of process 1
    lines += [(EQUAL, 0, 2 + len(FAMILIES), number["socket"]), first]
    lines += [(EQUAL, len(FAMILIES) - index, 0, family) for index, family in enumerate(FAMILIES)]
    lines += [_refused(EAFNOSUPPORT), ALLOW]
    return b"".join(struct.pack("HBBI", *line) for line in lines)


def _refused(error: int) -> Line:
    return VERDICT, 0, 0, 0x00050000 | error
