"""A sandbox, seen from outside: requests to its process 1, one after the other."""

from __future__ import annotations

import ast
import asyncio
import errno
import struct
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from dagger_exp.errors import SandboxError
from dagger_exp.protocols import Execution
from dagger_exp.sandboxes.calls import call_filter
from dagger_exp.sandboxes.limits import MAX_ANSWER_BYTES, Limits

LENGTHS = struct.Struct(">II")
START_TIMEOUT_S = 120.0
MAX_LABEL = 15
"""Characters that Linux keeps of the name of a process."""
GRACE_S = 30.0
"""Beyond its own time-out, an answer may take this long on a busy machine."""
FILES_TIMEOUT_S = 90.0


def init_settings(
    limits: Limits,
    *,
    environment: Mapping[str, str],
    tmpfs: Mapping[str, str] | None = None,
    uid: int | None = None,
    maps_user: bool = False,
    counts_processes: bool = False,
    is_counted: bool = False,
) -> dict[str, Any]:
    """Return what process 1 of a sandbox must know.

    Args:
        limits: of its commands.
        environment: variables of its commands, beside its own.
        tmpfs: options of the memory disks that it mounts first, by folder; it needs the capability.
        uid: of the commands, where it has the capability to choose it; None is its own.
        maps_user: whether commands see one and the same user id in all sandboxes.
        counts_processes: whether the system can count the processes of this sandbox alone.
        is_counted: whether the system bounds all memory that it holds.
    """
    return {
        **asdict(limits),
        "call_filter": call_filter(allows_shared_memory=is_counted).hex(),
        "max_files": limits.max_files,
        "socket_kib": 0 if is_counted else _socket_kib(),
        "is_counted": is_counted,
        "proc": "/proc",
        "environment": dict(environment),
        "tmpfs": dict(tmpfs or {}),
        "uid": uid,
        "maps_user": maps_user,
        "counts_processes": counts_processes,
    }


def init_command(limits: Limits, environment: Mapping[str, str], *, is_counted: bool = False) -> list[str]:
    """Return the command that is process 1 of a container, which has its own memory disks and user."""
    settings = init_settings(limits, environment=environment, is_counted=is_counted)
    return ["python3", "-I", "-S", "-c", source("init.py"), ascii(settings)]


def _socket_kib() -> int:
    """Return what a socket may keep for both ways, in KiB."""
    sizes = [Path("/proc/sys/net/core", name).read_text() for name in ("rmem_default", "wmem_default")]
    return sum(map(int, sizes)) >> 10


def source(name: str) -> str:
    """Return a program that runs inside."""
    return files("dagger_exp.sandboxes").joinpath(name).read_text()


class Session:
    """A `Sandbox` whose process 1 is at the other end of a stream.

    Args:
        reader: what it says.
        writer: what it hears; it ends itself where this is closed.
        end: ends and removes all of it, or waits until it has ended itself.
        last_words: returns what was said in the way of an error, once it is gone.
        rename: shows a name to those who list sandboxes, where there is such a list.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        end: Callable[[], Awaitable[None]],
        last_words: Callable[[], Awaitable[str]],
        rename: Callable[[str], Coroutine[Any, Any, None]] | None = None,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._end = end
        self._last_words = last_words
        self._rename = rename
        self._naming: asyncio.Task[None] | None = None
        self._label: dict[str, str] = {}
        self._turn = asyncio.Lock()
        self._ending: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Wait until it is ready; raises `SandboxError`, and leaves nothing behind."""
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._receive()
        except (OSError, EOFError, TimeoutError) as error:
            await self._fail("could not be started", error)
        except BaseException:
            await self.close()
            raise

    @property
    def is_gone(self) -> bool:
        """Whether process 1 has ended."""
        return self._reader.at_eof() or self._reader.exception() is not None

    def name(self, name: str) -> None:
        """Show a name to those who list sandboxes, or its end to those who list processes; nobody waits for it."""
        if self._rename:
            self._naming = asyncio.create_task(self._rename(name))
        else:
            self._label = {"label": name.encode("ascii", "replace").decode()[-MAX_LABEL:]}  # with the next request

    async def exec(self, script: str, timeout_s: float) -> Execution:
        """Run a shell script in `/work`."""
        request = {"op": "exec", "timeout_s": timeout_s}
        header, output = await self._ask(request, script.encode(errors="replace"), timeout_s + GRACE_S)
        exit_code = header["exit_code"]
        text = output.decode(errors="replace")
        return Execution(exit_code, text, timed_out=exit_code is None, num_cut_bytes=header["num_cut_bytes"])

    async def read_file(self, path: str) -> bytes:
        """Return a regular file that the commands could read, without following a link.

        Raises:
            FileNotFoundError: there is none.
            OSError: it is too large (`errno.EFBIG`).
        """
        header, content = await self._ask({"op": "read", "path": path}, b"", FILES_TIMEOUT_S)
        if "error" in header:
            raise FileNotFoundError(header["error"].strip())
        if "max_bytes" in header:
            raise OSError(errno.EFBIG, f"it has more than {header['max_bytes'] >> 20} MiB", path)
        return content

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        """Write files below `/work`; raises `OSError` where a command could not have written them either."""
        sizes = {path: len(content) for path, content in files.items()}
        header, _ = await self._ask({"op": "write", "sizes": sizes}, b"".join(files.values()), FILES_TIMEOUT_S)
        if "error" in header:
            raise OSError(header["error"].strip())

    async def close(self) -> None:
        """End all that runs in it, and remove it; a second call waits for the first."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._close())
        await asyncio.shield(self._ending)  # a cancelled caller does not leave it half closed

    async def _close(self) -> None:
        try:
            self._writer.close()
            if self._naming:
                await self._naming
            await self._end()
        finally:
            self.ended.set_result(None)

    async def _ask(self, header: dict[str, Any], body: bytes, timeout_s: float) -> tuple[dict[str, Any], bytes]:
        async with self._turn:
            if self._ending is not None:
                raise SandboxError("the sandbox is closed.")
            try:
                async with asyncio.timeout(timeout_s):
                    text = ascii(header | self._label).encode()
                    self._label = {}
                    self._writer.write(LENGTHS.pack(len(text), len(body)) + text + body)
                    await self._writer.drain()
                    return await self._receive()
            except (OSError, EOFError, TimeoutError) as error:
                await self._fail("is gone", error)
            except BaseException:
                await self.close()  # an answer that nobody waits for would be taken for the next one's
                raise

    async def _receive(self) -> tuple[dict[str, Any], bytes]:
        header_size, body_size = LENGTHS.unpack(await self._reader.readexactly(LENGTHS.size))
        if max(header_size, body_size) > MAX_ANSWER_BYTES:
            raise EOFError  # no answer of `init`: something else writes to the stream
        header = ast.literal_eval((await self._reader.readexactly(header_size)).decode())
        return header, await self._reader.readexactly(body_size)

    async def _fail(self, what: str, error: Exception) -> NoReturn:
        await self.close()
        words = "it did not answer in time" if isinstance(error, TimeoutError) else await self._last_words()
        raise SandboxError(f"the sandbox {what}: {words or 'it said nothing'}.") from error
