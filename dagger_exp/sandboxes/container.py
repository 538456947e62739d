"""One container: created, attached to, started, renamed, removed. Every call to the daemon is made in a thread."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dagger_exp.errors import SandboxError
from dagger_exp.sandboxes.session import Session

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container as Handle

CLIENT_TIMEOUT_S = 120
FRAME = struct.Struct(">BxxxI")
"""Before each piece of output: of which stream it is, and its length."""
STDERR = 2
MAX_WORDS_BYTES = 2000


@contextmanager
def connect() -> Iterator[DockerClient]:
    """Hold a client of this thread's own, since one that threads share loses answers; raises `SandboxError`."""
    import docker
    import requests
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=CLIENT_TIMEOUT_S)
    except DockerException as error:
        raise SandboxError(
            "no Docker daemon answers: start one (systemctl start docker), or name the socket of Docker or podman in "
            "DOCKER_HOST, as in unix:///run/podman/podman.sock."
        ) from error
    try:
        yield client
    except (DockerException, requests.RequestException) as error:
        said = getattr(error, "explanation", None) or str(error)
        raise SandboxError(f"the Docker daemon refuses: {' '.join(str(said).split()).rstrip('.')}.") from error
    finally:
        client.close()


@contextmanager
def found(image: str) -> Iterator[None]:
    """Say what to do where the daemon has no such image; raises `SandboxError`."""
    from docker.errors import ImageNotFound

    try:
        yield
    except ImageNotFound as error:
        raise SandboxError(
            f"there is no image {image}: docker pull {image}, or make one that has python3 and sh."
        ) from error


def remove(container: Handle) -> None:
    """Remove a container with all that runs in it, also where it is about to remove itself."""
    from docker.errors import APIError, NotFound

    with suppress(NotFound):
        try:
            container.remove(force=True, v=True)
        except APIError as error:
            if error.status_code != 409:  # it is being removed already
                raise
            container.wait(condition="removed")


@dataclass
class Container:
    """A running container.

    Args:
        id: as the daemon names it.
        stream: both ways, to and from its first process.
    """

    id: str
    stream: socket.socket

    @classmethod
    def start(cls, image: str, options: dict[str, Any]) -> Container:
        """Start one that ends as soon as nobody is at the other end of its stdin; raises `SandboxError`."""
        with connect() as client:
            with found(image):
                handle = client.containers.create(image, **options)
            assert handle.id
            try:
                stream = _attach(client, handle.id)
                handle.start()
            except BaseException:
                remove(handle)
                raise
            return cls(handle.id, stream)

    async def session(self) -> Session:
        """Return what speaks to it."""
        reader, writer = await asyncio.open_connection(sock=self.stream)
        output, words = asyncio.StreamReader(), bytearray()
        pump = asyncio.create_task(_separate(reader, output, words))

        async def end() -> None:
            await asyncio.to_thread(self._remove)
            await pump

        async def last_words() -> str:
            said = words.decode(errors="replace").strip().splitlines()
            return said[-1].rstrip(".") if said else ""

        return Session(output, writer, end=end, last_words=last_words, rename=self.rename)

    async def rename(self, name: str) -> None:
        """Give it a name, made plain and unique, for those who look at `docker ps`."""
        plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
        with suppress(SandboxError):  # one that has just ended is found out at its first command
            await asyncio.to_thread(self._rename, f"{plain}-{self.id[:8]}")

    def _rename(self, name: str) -> None:
        with connect() as client:
            client.api.rename(self.id, name)

    def _remove(self) -> None:
        from docker.errors import NotFound

        with connect() as client, suppress(NotFound):
            remove(client.containers.get(self.id))


def _attach(client: DockerClient, container_id: str) -> socket.socket:
    """Return the raw stream of a container that has not started yet, so that nothing of it is missed."""
    parameters = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
    attached = client.api.attach_socket(container_id, params=parameters)
    raw = getattr(attached, "_sock", attached)
    if not isinstance(raw, socket.socket):
        raise SandboxError("the Docker daemon is reached by TLS or ssh: name a unix socket in DOCKER_HOST.")
    stream = raw.dup()
    stream.setblocking(False)
    attached.close()
    raw.close()  # which the client would forget
    return stream


async def _separate(reader: asyncio.StreamReader, output: asyncio.StreamReader, words: bytearray) -> None:
    """Take apart what both streams say: stdout is fed to `output`, the end of stderr kept in `words`."""
    with suppress(OSError, EOFError):
        while True:
            stream, size = FRAME.unpack(await reader.readexactly(FRAME.size))
            piece = await reader.readexactly(size)
            if stream == STDERR:
                words += piece
                del words[:-MAX_WORDS_BYTES]
            else:
                output.feed_data(piece)
    output.feed_eof()
