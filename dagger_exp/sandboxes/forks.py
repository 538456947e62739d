"""Process 1 of a bubblewrap that is no sandbox itself: each one is a fork of it, in namespaces of its own.

An interpreter takes three times as long to start as bubblewrap does; a fork of one that runs takes less than either.
So one bubblewrap hides the machine, and what makes sandboxes of it is done here, as bubblewrap would do it: namespaces
of processes, mounts, network, System V and host name; then `init` is process 1 of each, and drops what it could do.

It gets a datagram for each sandbox, with its settings and two descriptors (the stream of its frames, and where it
complains), and it ends where nobody can send one any more. As `init`, it finds nothing of this package but that.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import struct

from dagger_exp.sandboxes.init import LIBC, checked, literal, serve

MAX_SETTINGS_BYTES = 1 << 18
"""More than a socket takes."""
NAMESPACES = 0x00020000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
"""The flags of `unshare` for mounts, host name, System V, processes and network."""
NO_SUID, NO_DEVICES, NO_PROGRAMS = 2, 4, 8
OWN = (
    ("proc", "/proc", NO_SUID | NO_DEVICES | NO_PROGRAMS, ""),
    ("devpts", "/dev/pts", NO_SUID | NO_PROGRAMS, "newinstance,ptmxmode=0666,mode=620"),
)
"""What shows processes and terminals shows those of one namespace: type, folder, flags and options."""
COVERED = ("/proc/sys", "/proc/irq", "/proc/bus", "/proc/sysrq-trigger")
"""Nobody inside has the right to write there; a second reason why it cannot be done."""
BIND, READ_ONLY_AGAIN = 4096, 32 | 1
SET_INTERFACE_FLAGS, IS_UP = 0x8914, 1


def main() -> None:
    """Fork sandboxes until nobody asks for one."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel takes the ended
    with socket.socket(fileno=0) as asked:
        while True:
            settings, descriptors, _, _ = socket.recv_fds(asked, MAX_SETTINGS_BYTES, 2)
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


def become_sandbox(settings: bytes, stream: int, complaints: int) -> None:
    """Be one until the end; never returns."""
    try:
        isolate(stream, complaints)
        serve(literal(settings.decode()))
    except BaseException as error:  # noqa: BLE001 - nothing of a child may go on as the zygote does
        os.write(2, str(error).encode(errors="replace"))
    finally:
        os._exit(1)


def isolate(stream: int, complaints: int) -> None:
    """Go on as the first process in namespaces of its own."""
    for target, source in enumerate((stream, stream, complaints)):
        os.dup2(source, target)  # over the descriptor with which sandboxes are asked for, too
    os.closerange(3, 1024)
    checked(LIBC.unshare(NAMESPACES), "unshare")
    if os.fork() != 0:  # the first process of the new namespace is a child
        os._exit(0)
    set_loopback_up()
    for kind, folder, flags, options in OWN:
        checked(LIBC.mount(kind.encode(), folder.encode(), kind.encode(), flags, options.encode()), f"mount {folder}")
    for covered in filter(os.path.exists, COVERED):
        place = covered.encode()
        checked(LIBC.mount(place, place, None, BIND, None), f"bind {covered}")
        checked(LIBC.mount(None, place, None, BIND | READ_ONLY_AGAIN | OWN[0][2], None), f"cover {covered}")


def set_loopback_up() -> None:
    """Let a sandbox speak to itself."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_INTERFACE_FLAGS, struct.pack("16sH14x", b"lo", IS_UP))


if __name__ == "__main__":
    main()
