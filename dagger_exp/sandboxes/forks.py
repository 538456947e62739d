"""Process 1 of a bubblewrap that is no sandbox itself: each one is a fork of it, in namespaces of its own.

An interpreter takes three times as long to start as bubblewrap does; a fork of one that runs takes less than either.
So one bubblewrap hides the machine, and what makes sandboxes of it is done here, as bubblewrap would do it: namespaces
of processes, mounts, network, System V and host name; then `init` is process 1 of each, and drops what it could do.

It gets a datagram for each sandbox, with its settings and two or three descriptors: the stream of its frames, where it
complains, and the entrance of a cgroup that bounds its memory. It ends where nobody can send one any more. As `init`,
it finds nothing of this package but that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct

from dagger_exp.sandboxes.init import LIBC, WORK, checked, literal, put, serve

MAX_SETTINGS_BYTES = 1 << 18
"""More than a socket takes."""
NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""The flags of `unshare` for mounts, cgroups, host name, System V, processes and network."""
READ_ONLY, NO_SUID, NO_DEVICES, NO_PROGRAMS, AGAIN, BIND = 1, 2, 4, 8, 32, 4096
TERMINALS = "newinstance,ptmxmode=0666,mode=620,max=64"
"""One machine has 4,096 of them."""
SOCKET_BYTES = "4096 65536 212992"
"""Least, usual and most that the kernel keeps for a TCP connection, each way; a machine's own most is 30 times that."""
SET_INTERFACE_FLAGS, IS_UP = 0x8914, 1


def main(shown: list[str], hidden: list[str]) -> None:
    """Fork sandboxes until nobody asks for one.

    Args:
        shown: folders of this machine.
        hidden: folders in them that are to look empty.
    """
    lay_over(shown)
    for folder in hidden:
        mount("tmpfs", "tmpfs", folder, READ_ONLY, "mode=755")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the ended
    with socket.socket(fileno=0) as asked:
        while True:
            settings, descriptors, _, _ = socket.recv_fds(asked, MAX_SETTINGS_BYTES, 3)
            if not settings:
                return
            if forked(complaints=descriptors[1]) == 0:
                become_sandbox(settings, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def forked(complaints: int) -> int | None:
    """Fork; where there is no room for a process, complain: that is the trouble of one sandbox alone."""
    try:
        return os.fork()
    except OSError as error:
        os.write(complaints, f"fork: {error.strerror}".encode())
        return None


def mount(kind: str | None, source: str | None, folder: str, flags: int, options: str | None = None) -> None:
    words = (word and word.encode() for word in (source, folder, kind))
    checked(LIBC.mount(*words, flags, options and options.encode()), f"mount {folder}")


def lay_over(shown: list[str]) -> None:
    """Show folders through files of our own, since a lock on one that is only shown would hold outside, too.

    Where the kernel or the file system does not allow that, they are shown as they are.
    """
    with open("/proc/self/mountinfo") as file:  # noqa: PTH123
        mounted = {line.split()[4].encode().decode("unicode_escape") for line in file}
    below = [place for place in sorted(mounted) if any(f"{place}/".startswith(f"{folder}/") for folder in shown)]
    opened = {place: os.open(place, os.O_PATH) for place in below}
    for place, descriptor in opened.items():
        source = f"/proc/self/fd/{descriptor}"
        try:
            mount("overlay", "overlay", place, READ_ONLY | NO_SUID | NO_DEVICES, f"lowerdir={source}:{WORK}")
        except SystemExit:
            LIBC.mount(source.encode(), place.encode(), None, BIND, None)
        os.close(descriptor)


def become_sandbox(text: bytes, stream: int, complaints: int, *group: int) -> None:
    """Be one until the end; never returns."""
    try:
        for descriptor in group:
            os.write(descriptor, b"0")  # which is whoever writes it
        settings = literal(text.decode())
        isolate(settings, stream, complaints)
        serve(settings)
    except BaseException as error:  # noqa: BLE001 - nothing of a child may go on as the zygote does
        os.write(2, str(error).encode(errors="replace"))
    finally:
        os._exit(1)


def isolate(settings: dict, stream: int, complaints: int) -> None:
    """Go on as the first process in namespaces of its own."""
    for target, source in enumerate((stream, stream, complaints)):
        os.dup2(source, target)  # over the descriptor with which sandboxes are asked for, too
    os.closerange(3, 1024)
    checked(LIBC.unshare(NAMESPACES), "unshare")
    if os.fork() != 0:  # the first process of the new namespace is a child
        os._exit(0)
    set_loopback_up()
    mount("devpts", "devpts", "/dev/pts", NO_SUID | NO_PROGRAMS, TERMINALS)
    flags = NO_SUID | NO_DEVICES | NO_PROGRAMS
    mount("proc", "proc", "/proc", flags)
    for name in ("tcp_rmem", "tcp_wmem"):
        put(f"/proc/sys/net/ipv4/{name}", SOCKET_BYTES)
    settings["proc"] = f"/proc/self/fd/{os.open('/proc', os.O_PATH)}"  # for what commands must not write there
    mount(None, "/proc", "/proc", BIND)
    mount(None, None, "/proc", AGAIN | BIND | READ_ONLY | flags)
    if not settings["is_counted"]:
        replace_zero()


def replace_zero() -> None:
    """Put a file without end in the place of `/dev/zero`: what is shared through that is counted to nobody."""
    place = "/dev/shm"  # noqa: S108 - which is covered next
    mount("tmpfs", "tmpfs", place, NO_SUID | NO_DEVICES | NO_PROGRAMS, "size=64k,mode=755")
    with open(f"{place}/zero", "wb") as file:  # noqa: PTH123
        file.truncate(1 << 62)
    mount(None, f"{place}/zero", "/dev/zero", BIND)
    mount(None, None, "/dev/zero", AGAIN | BIND | READ_ONLY | NO_SUID | NO_DEVICES | NO_PROGRAMS)


def set_loopback_up() -> None:
    """Let a sandbox speak to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_INTERFACE_FLAGS, struct.pack("16sH14x", b"lo", IS_UP))
