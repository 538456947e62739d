"""A sandbox that is a child process of this one: its streams are the pipes of the process."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress

from dagger_exp.errors import SandboxError
from dagger_exp.sandboxes.session import Session

MAX_WORDS_BYTES = 2000
KEPT_VARIABLES = ("PATH", "XDG_RUNTIME_DIR")
"""Where programs are, and where a user's systemd listens."""
MAX_FRAME_BYTES = 1 << 20
"""Read ahead of what is asked for."""


async def start_process(command: Sequence[str]) -> Session:
    """Start a command whose stdin and stdout are those of process 1 of a sandbox; raises `SandboxError`."""
    process = await spawn(command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
    assert process.stdin
    assert process.stdout
    assert process.stderr
    stderr = process.stderr

    async def end() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # one that was alone could leave the others behind, half started
        await process.wait()

    async def last_words() -> str:
        return last_line(await stderr.read(MAX_WORDS_BYTES))

    session = Session(process.stdout, process.stdin, end=end, last_words=last_words)
    await session.start()
    return session


async def spawn(command: Sequence[str], *, stdin: int, stdout: int) -> asyncio.subprocess.Process:
    """Start a program in a group of its own, with a pipe for what it complains of; raises `SandboxError`."""
    try:
        return await asyncio.create_subprocess_exec(
            shutil.which(command[0]) or command[0],
            *command[1:],
            stdin=stdin,
            stdout=stdout,
            stderr=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},  # and no secret
            cwd="/",
            start_new_session=True,  # Ctrl-C is ours to hear; and a group that ends as one
            limit=MAX_FRAME_BYTES,
        )
    except OSError as error:
        raise SandboxError(f"{command[0]} cannot be started: {error.strerror}.") from error


def last_line(said: bytes) -> str:
    """Return the last of what a program has said, as it goes into a sentence; nothing where it said nothing."""
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1].rstrip(".") if lines else ""
