"""Process 1 inside a sandbox: runs scripts, reads and writes files, and ends all that a script has left behind.

In a container it is started with its own source (`python3 -c`), which needs Python 3.8 and nothing else; of bubblewrap
it is a fork (`forks`). It imports nothing of this package, and little else: a container spends most of its start on
that. Frames go over stdin and stdout: two lengths, a header (a Python literal), a body. It ends where stdin does.

What keeps it out of reach of what it runs: a signal from inside never reaches process 1, it cannot be traced or looked
into (`PR_SET_DUMPABLE`), and nothing else is alive while it forks. Where it may, it runs scripts as another user than
its own. It touches no file of theirs: a child does, with their rights.
"""

from __future__ import annotations

import _signal as signal  # pyright: ignore[reportMissingImports]  # without the enums, which take as long as Python
import ctypes
import fcntl
import os
import resource
import select
import stat
import struct
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

POLL_S = 0.03
FILES_TIMEOUT_S = 60.0
CHUNK = MIB = 1 << 20
MAX_READ_BYTES = 4 * MIB
"""Of a file that is asked for."""
WORK = "/work"
LENGTHS = struct.Struct(">II")
USER_ID = 1000
"""Of the commands, as they see it, where the sandbox can choose it."""
SIGKILL_CODE = 128 + signal.SIGKILL
HELD = (b"RssAnon:", b"RssShmem:", b"VmSwap:", b"VmPTE:")
MAX_FILES = 256
"""Open in one process."""
MAX_SIGNALS = 256
"""Queued, since all processes of a user have one queue."""

F_SETPIPE_SZ = 1031
LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 4, 15, 22, 36, 38
CLONE_NEWUSER = 0x10000000
MOUNT_FLAGS = 2 | 4  # nosuid, nodev
KEPT_CAPABILITIES = sum(1 << number for number in (5, 6, 7, 31))  # to run commands as another user, and to end them
CAPABILITY_VERSION = 0x20080522


class suppress:  # noqa: N801 - it is contextlib's, which takes longer to import
    def __init__(self, *errors: type[BaseException]) -> None:
        self.errors = errors

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        return kind is not None and issubclass(kind, self.errors)


class Kept:
    """The beginning and the end of a stream, at most `max_bytes` of it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_head = max_bytes // 2
        self.max_tail = max_bytes - self.max_head
        self.head = bytearray()
        self.tail = bytearray()
        self.num_cut = 0

    def add(self, chunk: bytes) -> None:
        room = self.max_head - len(self.head)
        self.head += chunk[:room]
        self.tail += chunk[room:]
        if len(self.tail) > self.max_tail + CHUNK:
            self.trim()

    def trim(self) -> None:
        over = max(0, len(self.tail) - self.max_tail)
        del self.tail[:over]
        self.num_cut += over

    def whole(self) -> bytes:
        self.trim()
        return bytes(self.head + self.tail)


def main() -> None:
    serve(literal(sys.argv[1]))


def serve(settings: dict) -> None:
    """Be process 1 of a sandbox; never returns."""
    if os.getpid() != 1:  # it ends all processes that it can see
        sys.exit("the sandbox has no process namespace of its own")
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # which process 1 does not feel
    LIBC.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for folder, options in settings["tmpfs"].items():
        checked(LIBC.mount(b"tmpfs", folder.encode(), b"tmpfs", MOUNT_FLAGS, options.encode()), "mount " + folder)
    drop_capabilities()
    os.chdir(WORK)
    if settings["uid"] is None and not os.access(WORK, os.W_OK):
        sys.exit(WORK + " cannot be written by the user of the image: name that by its number, as in USER 1000")
    waker = wake_on_child()
    send({"ready": True}, b"")
    while True:
        header, body = receive()
        send(*answer(settings, header, body, waker))


def checked(result: int, name: str) -> None:
    if result != 0:
        sys.exit(f"{name}: {os.strerror(ctypes.get_errno())}")


def drop_capabilities() -> None:
    header = struct.pack("II", CAPABILITY_VERSION, 0)
    data = ctypes.create_string_buffer(24)
    checked(LIBC.capget(header, data), "capget")
    words = struct.unpack("6I", data.raw)
    kept = words[1] & KEPT_CAPABILITIES  # of the permitted ones; the second half of the words is for numbers above 31
    checked(LIBC.capset(header, struct.pack("6I", kept, kept, 0, 0, 0, 0)), "capset")


def wake_on_child() -> int:
    """Return a descriptor that can be read once a child has ended."""
    waker, write_end = os.pipe()
    os.set_blocking(waker, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return waker


def receive() -> tuple[dict, bytes]:
    header_size, body_size = LENGTHS.unpack(read_exactly(LENGTHS.size))
    return literal(read_exactly(header_size).decode()), read_exactly(body_size)


def literal(text: str) -> dict:
    return eval(text, {"__builtins__": {}})  # noqa: S307 - what the client made by `ascii`, and no command can say


def read_exactly(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        chunk = os.read(0, min(CHUNK, size - len(data)))
        if not chunk:
            os._exit(0)  # the client is gone
        data += chunk
    return bytes(data)


def send(header: dict, body: bytes) -> None:
    text = ascii(header).encode()
    write_all(1, LENGTHS.pack(len(text), len(body)) + text + body)


def write_all(descriptor: int, data: bytes | bytearray) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def answer(settings: dict, header: dict, body: bytes, waker: int) -> tuple[dict, bytes]:
    if "label" in header:
        LIBC.prctl(PR_SET_NAME, header["label"].encode(), 0, 0, 0)
    if header["op"] == "exec":
        kept = Kept(settings["max_output_bytes"])
        code = run(settings, lambda: execute(body, settings["environment"]), header["timeout_s"], kept, waker)
        output = kept.whole()
        return {"exit_code": code, "num_cut_bytes": kept.num_cut}, output
    kept = Kept(2 * CHUNK + MAX_READ_BYTES)
    touch = (lambda: read_file(header["path"])) if header["op"] == "read" else (lambda: write_files(header, body))
    code = run(settings, touch, FILES_TIMEOUT_S, kept, waker)
    text = kept.whole()
    if code != 0:
        return {"error": text[-CHUNK // 16 :].decode(errors="replace") or "no answer"}, b""
    return ({"max_bytes": MAX_READ_BYTES}, b"") if len(text) > MAX_READ_BYTES else ({}, text)


def run(settings: dict, action: Callable[[], None], timeout_s: float, kept: Kept, waker: int) -> int | None:
    """Run `action` in a child, then end all; return its exit code, None after `timeout_s`."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        act_as_command(settings, action, write_end)
    os.close(write_end)
    os.set_blocking(read_end, False)
    with suppress(OSError):
        fcntl.fcntl(read_end, F_SETPIPE_SZ, CHUNK)
    code = supervise(child, read_end, waker, timeout_s, kept, settings)
    end_all()
    while drain(read_end, kept):
        pass
    os.close(read_end)
    return code


def supervise(child: int, pipe: int, waker: int, timeout_s: float, kept: Kept, settings: dict) -> int | None:
    """Gather output until the child has ended, or time or room are up."""
    deadline = time.monotonic() + timeout_s
    next_look = 0.0
    watched = [pipe, waker, 0]
    while time.monotonic() < deadline:
        readable = select.select(watched, [], [], min(POLL_S, max(0.0, deadline - time.monotonic())))[0]
        if 0 in readable:  # nobody asks while an answer is due: the client is gone
            end_all()
            os._exit(0)
        if pipe in readable and not drain(pipe, kept):
            watched.remove(pipe)  # closed, which is not yet the end
        if waker in readable:
            os.read(waker, 4096)
        ended, status = reap(child)
        if ended:
            return exit_code(status)
        if time.monotonic() >= next_look:
            complaint = excess(settings)
            if complaint:
                kept.add(complaint)
                return SIGKILL_CODE
            next_look = time.monotonic() + POLL_S
    return None


def drain(pipe: int, kept: Kept) -> bool:
    """Take what is there, at most a chunk; return whether more may come."""
    try:
        chunk = os.read(pipe, CHUNK)
    except BlockingIOError:
        return True
    kept.add(chunk)
    return bool(chunk)


def reap(child: int) -> tuple[bool, int]:
    """Take the ended processes; return whether `child` was among them, and its status."""
    with suppress(ChildProcessError):
        ended, status = os.waitpid(-1, os.WNOHANG)
        while ended:
            if ended == child:
                return True, status
            ended, status = os.waitpid(-1, os.WNOHANG)
    return False, 0


def exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def excess(settings: dict) -> bytes:
    """Return what is said where all processes together are too many or hold too much; else nothing."""
    num_kib, num_files, num_processes = count_sockets() * settings["socket_kib"], 0, 0
    for name in os.listdir("/proc"):  # noqa: PTH208 - what needs no import starts sooner
        if name.isdigit() and name != "1":
            with suppress(OSError), open(f"/proc/{name}/status", "rb") as file:  # noqa: PTH123
                num_kib += sum(int(line.split()[1]) for line in file if line.startswith(HELD))
                num_processes += 1
            num_files += count_files(name) if settings["uid"] is None else 0
    if num_kib > settings["memory_mib"] * 1024:
        return b"\n[sandbox: ended, more than %d MiB of memory in use]\n" % settings["memory_mib"]
    if num_processes > settings["max_processes"]:
        return b"\n[sandbox: ended, more than %d processes]\n" % settings["max_processes"]
    if num_files > settings["max_files"]:
        return b"\n[sandbox: ended, more than %d open files]\n" % settings["max_files"]
    return b""


def count_sockets() -> int:
    with open("/proc/net/sockstat", "rb") as file:  # noqa: PTH123
        return int(file.readline().split()[2])


def count_files(process: str) -> int:
    try:
        return len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208
    except PermissionError:  # one that hides them may have as many
        return MAX_FILES
    except OSError:
        return 0


def end_all() -> None:
    """End every process but this one, and wait until none is left."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        reap(0)
        time.sleep(0.001)


def act_as_command(settings: dict, action: Callable[[], None], output: int) -> None:
    """Become a command in every respect, and act; never returns."""
    try:
        os.setsid()
        detach(output)
        become_user(settings)
        os.closerange(3, 1024)
        limit(settings)
        refuse_calls(bytes.fromhex(settings["call_filter"]))
        action()
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 - nothing of a child may go on as process 1 does
        with suppress(OSError):
            write_all(2, f"{error}\n".encode(errors="replace"))
    finally:
        os._exit(126)


def detach(output: int) -> None:
    """Keep neither the streams of process 1 nor how it handles signals."""
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in enumerate((null, output, output)):
        os.dup2(source, target)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def become_user(settings: dict) -> None:
    if settings["uid"] is not None:
        os.setgroups([])
        os.setresgid(settings["uid"], settings["uid"], settings["uid"])
        os.setresuid(settings["uid"], settings["uid"], settings["uid"])
    LIBC.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else its own /proc is closed to it
    own = settings["proc"] + "/self/"
    put(own + "oom_score_adj", "1000")
    if settings["maps_user"]:  # so that all see the same user, whoever they are to this machine
        maps = [("uid_map", os.getuid()), ("gid_map", os.getgid())]
        checked(LIBC.unshare(CLONE_NEWUSER), "unshare")
        put(own + "setgroups", "deny")
        for name, outer in maps:
            put(own + name, f"{USER_ID} {outer} 1")


def put(path: str, text: str) -> None:
    with open(path, "w") as file:  # noqa: PTH123
        file.write(text)


def limit(settings: dict) -> None:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_DATA: settings["memory_mib"] * MIB,
        resource.RLIMIT_FSIZE: settings["file_mib"] * MIB,
        resource.RLIMIT_CPU: settings["cpu_s"],
        resource.RLIMIT_NOFILE: MAX_FILES,
        resource.RLIMIT_SIGPENDING: MAX_SIGNALS,
        resource.RLIMIT_MEMLOCK: 1 << 16,
    }
    if settings["counts_processes"]:
        wanted[resource.RLIMIT_NPROC] = settings["max_processes"]
    for kind, most in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (value, value))


def refuse_calls(program: bytes) -> None:
    """Install a filter of system calls, which holds for all that comes after."""
    buffer = ctypes.create_string_buffer(program, len(program))
    pointer = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    checked(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    checked(LIBC.prctl(PR_SET_SECCOMP, 2, ctypes.c_char_p(pointer), 0, 0), "seccomp")


def execute(script: bytes, environment: dict[str, str]) -> None:
    shell = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"  # noqa: PTH110
    os.execve(shell, [shell, "-c", script], {**os.environ, **environment})  # noqa: S606


def read_file(path: str) -> None:
    """Write a regular file to stdout, or more than `MAX_READ_BYTES` of it; no part of the path may be a link."""
    folder, name = open_folder(path, makes=False)
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise OSError(f"{path} is no regular file")
    num_bytes, chunk = 0, os.read(descriptor, CHUNK)
    while chunk and num_bytes <= MAX_READ_BYTES:
        write_all(1, chunk)
        num_bytes += len(chunk)
        chunk = os.read(descriptor, CHUNK)


def write_files(header: dict, body: bytes) -> None:
    for path, size in header["sizes"].items():
        if ".." in path.split("/") or not os.path.join(WORK, path).startswith(WORK + "/"):  # noqa: PTH118
            raise OSError(f"{path} is not below {WORK}")
        folder, name = open_folder(path, makes=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(name, flags, 0o644, dir_fd=folder)
        write_all(descriptor, body[:size])
        os.close(descriptor)
        os.close(folder)
        body = body[size:]


def open_folder(path: str, *, makes: bool) -> tuple[int, str]:
    """Return the folder of a path and the name in it; walks by hand, so that no link is followed."""
    *parts, name = os.path.join(WORK, path).split("/")[1:]  # noqa: PTH118
    folder = os.open("/", os.O_PATH)
    for part in filter(None, parts):
        if makes:
            with suppress(FileExistsError, PermissionError, OSError):
                os.mkdir(part, 0o755, dir_fd=folder)
        inner = os.open(part, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
        os.close(folder)
        folder = inner
    return folder, name


if __name__ == "__main__":
    main()
