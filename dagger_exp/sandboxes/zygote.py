"""Processes that sandboxes are forked from: started once, asked over a socket, gone with the pool (see `forks`)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from dagger_exp.errors import SandboxError
from dagger_exp.sandboxes.limits import make_group, memory_groups, remove_group
from dagger_exp.sandboxes.process import MAX_FRAME_BYTES, last_line, spawn
from dagger_exp.sandboxes.session import START_TIMEOUT_S, Session, source

END_TIMEOUT_S = 30.0
LAST_WORDS_TIMEOUT_S = 0.5
SEND_PAUSE_S = 0.01
LOADER = "import os; exec(os.read(0, 1 << 18))"
"""Short, since the commands in a sandbox can list it."""
PROGRAM = """
import sys
init = type(sys)("init")
exec(compile({init!r}, "init.py", "exec"), init.__dict__)
sys.modules["dagger_exp.sandboxes.init"] = init
forks = type(sys)("forks")
exec(compile({forks!r}, "forks.py", "exec"), forks.__dict__)
forks.main({shown!r}, {hidden!r})
"""
Mounts = tuple[tuple[str, str], ...]
Root = tuple[list[str], list[str], list[str]]
"""The command of a bubblewrap, the folders that it shows, and those in them that are to look empty."""


def zygote_command(name: str) -> list[str]:
    """Return the command that is process 1 of a zygote; the name is for those who list processes."""
    return ["python3", "-I", "-S", "-c", LOADER, name]


class Zygotes:
    """Those of one event loop, by the folders that they show.

    Args:
        root: returns what one is started with that shows these mounts.
    """

    def __init__(self, root: Callable[[Mounts], Root]) -> None:
        self._root = root
        self._started: dict[Mounts, asyncio.Task[Zygote]] = {}
        self._is_over = False

    async def get(self, mounts: Mounts) -> Zygote:
        """Return one that lives; raises `SandboxError`."""
        if self._is_over:
            raise SandboxError("the pool was closed while a sandbox started.")
        starting = self._started.get(mounts)
        if starting is None or (starting.done() and (starting.exception() or not starting.result().is_alive)):
            starting = self._started[mounts] = asyncio.create_task(self._next(mounts, starting))
        return await asyncio.shield(starting)

    async def end(self) -> None:
        """End all; none is started any more."""
        self._is_over = True
        await asyncio.gather(*map(_ended, self._started.values()))

    async def _next(self, mounts: Mounts, before: asyncio.Task[Zygote] | None) -> Zygote:
        if before is not None:
            await _ended(before)
        return await Zygote.start(self._root(mounts))


async def _ended(starting: asyncio.Task[Zygote]) -> None:
    await asyncio.wait([starting])
    if starting.exception() is None:
        await starting.result().end()


class Zygote:
    """What is at the other end of the socket.

    Args:
        process: a bubblewrap whose process 1 is `forks`, in a group of its own.
        asked: takes a datagram for each sandbox.

    Attributes:
        groups: below which a sandbox has its cgroup; None where it has none.
    """

    def __init__(self, process: asyncio.subprocess.Process, asked: socket.socket) -> None:
        assert process.stderr
        self._process, self._asked = process, asked
        self._said = asyncio.create_task(process.stderr.read())
        self.groups: Path | None = None

    @classmethod
    async def start(cls, root: Root) -> Zygote:
        """Start one; raises `SandboxError` where the program cannot be started at all."""
        command, shown, hidden = root
        with ExitStack() as at_failure:
            asked, asks = _pair(socket.SOCK_SEQPACKET)
            at_failure.enter_context(asked)
            asked.setblocking(False)
            with asks:
                zygote = cls(await spawn(command, stdin=asks.fileno(), stdout=asyncio.subprocess.DEVNULL), asked)
            at_failure.pop_all()
        try:
            programs = {"init": source("init.py"), "forks": source("forks.py")}
            await zygote._send(PROGRAM.format(**programs, shown=shown, hidden=hidden))
            zygote.groups = await memory_groups(zygote._process.pid, waits=command[0] == "systemd-run")
        except SandboxError:
            await zygote.end()
            raise
        return zygote

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended; the end of what it says is heard before its exit code."""
        return self._process.returncode is None and not self._said.done()

    async def fork(self, settings: Mapping[str, Any], total_mib: int) -> Session:
        """Return a started sandbox that holds so much memory at most, if it has a group; raises `SandboxError`."""
        with ExitStack() as at_failure, ExitStack() as at_end:
            stream, their_stream = _pair(socket.SOCK_STREAM)
            at_failure.enter_context(stream)
            at_end.enter_context(their_stream)
            complaints, complains = _pair(socket.SOCK_STREAM)
            at_failure.enter_context(complaints)
            at_end.enter_context(complains)
            descriptors, group = [their_stream.fileno(), complains.fileno()], None
            if self.groups is not None:
                group, entrance = make_group(self.groups, total_mib)
                at_failure.callback(group.rmdir)
                descriptors.append(at_end.enter_context(entrance).fileno())
            await self._send(ascii(dict(settings)), *descriptors)
            session = await self._session(stream, complaints, group)
            at_failure.pop_all()
        await session.start()
        return session

    async def end(self) -> None:
        """End it, and all sandboxes that are left."""
        self._asked.close()
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        await self._said

    async def _send(self, text: str, *descriptors: int) -> None:
        """Send a datagram, once there is room; raises `SandboxError` where nobody will take it."""
        for _ in range(int(START_TIMEOUT_S / SEND_PAUSE_S)):
            try:
                socket.send_fds(self._asked, [text.encode()], descriptors)
            except BlockingIOError:  # it forks as fast as it can
                await asyncio.sleep(SEND_PAUSE_S)
            except OSError as error:
                if error.errno == errno.EMSGSIZE:
                    raise SandboxError("the environment of a sandbox is larger than 200 kB.") from error
                said = await self._last_words() or error.strerror
                raise SandboxError(f"bubblewrap has ended: {said}.") from error
            else:
                return
        raise SandboxError(f"bubblewrap takes no more sandboxes since {START_TIMEOUT_S:g} s.")

    async def _session(self, stream: socket.socket, complaints: socket.socket, group: Path | None) -> Session:
        reader, writer = await asyncio.open_connection(sock=stream, limit=MAX_FRAME_BYTES)
        complaint, closer = await asyncio.open_connection(sock=complaints)
        said = bytearray()

        async def end() -> None:
            try:  # its process 1 hears that the stream is closed, and ends the others and itself
                async with asyncio.timeout(END_TIMEOUT_S):
                    said.extend(await complaint.read())
            except TimeoutError:
                logging.getLogger(__name__).warning("a sandbox has not ended in time; it ends with the pool")
            finally:
                closer.close()
            if group is not None:
                await remove_group(group)

        async def last_words() -> str:
            return last_line(bytes(said)) or await self._last_words()

        return Session(reader, writer, end=end, last_words=last_words)

    async def _last_words(self) -> str:
        """Return what bubblewrap said before it ended; nothing where it goes on."""
        await asyncio.wait([self._said], timeout=LAST_WORDS_TIMEOUT_S)
        return last_line(self._said.result()) if self._said.done() else ""


def _pair(kind: socket.SocketKind) -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, kind)
    except OSError as error:
        raise SandboxError(f"a sandbox cannot be asked for: {error.strerror}.") from error
