"""Which system calls may a command make? A filter that the kernel runs before each of them."""

from __future__ import annotations

import os
import struct

from dagger_exp.errors import SandboxError

MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Name in audit, and column of the numbers below."""
EXAMINED = {"clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "socketpair": (53, 199)} | {
    "prlimit64": (302, 261),
    "mmap": (9, 222),
    "fcntl": (72, 25),
    "setsockopt": (54, 208),
}
REFUSED = (
    # what reaches past the namespaces
    {"unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241)}
    | {"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)}
    # what holds memory that is no process's, or takes from what a user or all of the machine share
    | {"memfd_create": (319, 279), "memfd_secret": (447, 447), "userfaultfd": (323, 282), "vmsplice": (278, 75)}
    | {"shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)}
    | {"io_setup": (206, 0), "io_uring_setup": (425, 425)}
    | {"inotify_init": (253, 26), "inotify_init1": (294, 26), "fanotify_init": (300, 262)}
)
NAMESPACES = 0x7E020000
"""The flags of `clone` that make one; in a user namespace of its own a command has all capabilities."""
FAMILIES = (1, 2, 10, 16)
"""Of sockets: unix, IPv4, IPv6, netlink. Others, as vsock, know no network namespace."""
SHARED_AND_ANONYMOUS, HUGE_PAGES = 0x01 | 0x20, 0x40000
SET_LEASE, NOTIFY, SET_PIPE_SIZE = 1024, 1026, 1031
SOCKET_LEVEL, BUFFER_SIZES = 1, (7, 8)
SECOND_NUMBERS = 0x40000000
EPERM, ENOMEM, ENOSYS, EAFNOSUPPORT = 1, 12, 38, 97
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, VERDICT = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
AT_NUMBER, AT_MACHINE, AT_ARGUMENTS = 0, 4, 16
ALLOW = (VERDICT, 0, 0, 0x7FFF0000)
Line = tuple[int, int, int, int]
"""Operation, lines to skip where it holds, lines to skip where not, operand."""


def call_filter(*, allows_shared_memory: bool) -> bytes:
    """Return a BPF program for this machine; raises `SandboxError` where its numbers are not known.

    Args:
        allows_shared_memory: without a file, which is counted to no process once it is not mapped.
    """
    name = os.uname().machine
    if name not in MACHINES:
        raise SandboxError(f"sandboxes know the system calls of {' and '.join(MACHINES)}, and not those of {name}.")
    machine, column = MACHINES[name]
    number = {name: numbers[column] for name, numbers in EXAMINED.items()}
    lines: list[Line] = [(LOAD, 0, 0, AT_MACHINE), (EQUAL, 1, 0, machine), _refused(ENOSYS), (LOAD, 0, 0, AT_NUMBER)]
    lines += [(AT_LEAST, 0, 1, SECOND_NUMBERS), _refused(ENOSYS)]  # the same calls by other numbers
    lines += [(EQUAL, 0, 1, number["clone3"]), _refused(ENOSYS)]  # its flags are out of sight; libc takes clone then
    for refused in sorted({numbers[column] for numbers in REFUSED.values()}):
        lines += [(EQUAL, 0, 1, refused), _refused(EPERM)]
    shared = [(AND, 0, 0, SHARED_AND_ANONYMOUS), *_where(SHARED_AND_ANONYMOUS, error=ENOMEM)]
    mapped = [_argument(3), (ANY_BIT, 0, 1, HUGE_PAGES), _refused(ENOMEM), *([] if allows_shared_memory else shared)]
    sized = [_argument(1), (EQUAL, 1, 0, SOCKET_LEVEL), ALLOW, _argument(2), *_where(*BUFFER_SIZES, error=0)]
    family = [line for family in FAMILIES for line in ((EQUAL, 0, 1, family), ALLOW)]
    family = [_argument(0), *family, _refused(EAFNOSUPPORT)]
    lines += _of(number["clone"], [_argument(0), (ANY_BIT, 0, 1, NAMESPACES), _refused(EPERM)])
    lines += _of(number["prlimit64"], [_argument(0), *_where(1, error=EPERM)])  # of process 1
    lines += _of(number["fcntl"], [_argument(1), *_where(SET_LEASE, NOTIFY, SET_PIPE_SIZE, error=EPERM)])
    lines += _of(number["setsockopt"], sized)  # left as it is, without a word: the kernel may choose another size, too
    lines += _of(number["mmap"], mapped) + _of(number["socket"], family) + _of(number["socketpair"], family)
    return b"".join(struct.pack("HBBI", *line) for line in [*lines, ALLOW])


def _of(number: int, lines: list[Line]) -> list[Line]:
    """Return lines for one call, which is allowed where they do not refuse it."""
    return [(EQUAL, 0, len(lines) + 1, number), *lines, ALLOW]


def _argument(index: int) -> Line:
    return LOAD, 0, 0, AT_ARGUMENTS + 8 * index


def _where(*values: int, error: int) -> list[Line]:
    return [line for value in values for line in ((EQUAL, 0, 1, value), _refused(error))]


def _refused(error: int) -> Line:
    return VERDICT, 0, 0, 0x00050000 | error
