"""A process that sandboxes are forked from: started once, asked over a socket, gone with the pool (see `forks`)."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from dagger_exp.errors import SandboxError
from dagger_exp.sandboxes.process import MAX_FRAME_BYTES, MAX_WORDS_BYTES
from dagger_exp.sandboxes.session import Session, source

END_TIMEOUT_S = 30.0
"""A sandbox that takes longer to end takes all others with it."""
LAST_WORDS_TIMEOUT_S = 2.0
LOADER = "import os; exec(os.read(0, 1 << 18))"
"""Short, since the commands in a sandbox can list it."""
PROGRAM = """
import sys
init = type(sys)("init")
exec(compile({init!r}, "init.py", "exec"), init.__dict__)
sys.modules["dagger_exp.sandboxes.init"] = init
exec(compile({forks!r}, "forks.py", "exec"), {{"__name__": "__main__"}})
"""


def zygote_command(name: str) -> list[str]:
    """Return the command that is process 1 of a zygote; the name is for those who list processes."""
    return ["python3", "-I", "-S", "-c", LOADER, name]


class Zygote:
    """What is at the other end of the socket.

    Args:
        process: a bubblewrap whose process 1 is `forks`, in a group of its own.
        asked: takes a datagram for each sandbox.
    """

    def __init__(self, process: asyncio.subprocess.Process, asked: socket.socket) -> None:
        self._process, self._asked = process, asked

    @classmethod
    async def start(cls, command: Sequence[str]) -> Zygote:
        """Start one; raises `SandboxError` where the program cannot be started at all."""
        asked, asks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            process = await asyncio.create_subprocess_exec(
                shutil.which(command[0]) or command[0],
                *command[1:],
                stdin=asks.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={"PATH": os.environ.get("PATH", os.defpath)},  # and no secret
                cwd="/",
                start_new_session=True,  # Ctrl-C is ours to hear; and a group that ends as one
            )
        except OSError as error:
            asked.close()
            raise SandboxError(f"{command[0]} cannot be started: {error.strerror}.") from error
        finally:
            asks.close()
        zygote = cls(process, asked)
        await zygote._send(PROGRAM.format(init=source("init.py"), forks=source("forks.py")))
        return zygote

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.returncode is None

    async def fork(self, settings: Mapping[str, Any]) -> Session:
        """Return a started sandbox; raises `SandboxError`."""
        ours, theirs = socket.socketpair()
        complaints, complains = os.pipe()
        try:
            await self._send(ascii(dict(settings)), theirs.fileno(), complains)
        except SandboxError:
            ours.close()
            os.close(complaints)
            raise
        finally:
            theirs.close()
            os.close(complains)
        session = await self._session(ours, await _reader(complaints))
        await session.start()
        return session

    async def _send(self, text: str, *descriptors: int) -> None:
        """Send a datagram, which the kernel keeps until it is taken; raises `SandboxError` where nobody will."""
        try:
            socket.send_fds(self._asked, [text.encode()], descriptors)
        except OSError as error:
            raise SandboxError(f"bubblewrap has ended: {await self._last_words() or error.strerror}.") from error

    async def end(self) -> None:
        """End it, and all sandboxes that are left."""
        self._asked.close()
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _session(self, stream: socket.socket, complaints: asyncio.StreamReader) -> Session:
        reader, writer = await asyncio.open_connection(sock=stream, limit=MAX_FRAME_BYTES)
        said = bytearray()

        async def end() -> None:
            try:  # closed with the last of its processes
                async with asyncio.timeout(END_TIMEOUT_S):
                    said.extend(await complaints.read())
            except TimeoutError:
                await self.end()

        async def last_words() -> str:
            return _last_line(bytes(said)) or await self._last_words()

        return Session(reader, writer, end=end, last_words=last_words)

    async def _last_words(self) -> str:
        """Return what bubblewrap said before it ended; nothing where it goes on."""
        assert self._process.stderr
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS_TIMEOUT_S):
                await self._process.wait()
                return _last_line(await self._process.stderr.read(MAX_WORDS_BYTES))
        return ""


def _last_line(said: bytes) -> str:
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else ""


async def _reader(descriptor: int) -> asyncio.StreamReader:
    """Return what reads a pipe."""
    reader = asyncio.StreamReader()
    pipe = os.fdopen(descriptor, "rb", 0)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
    return reader
