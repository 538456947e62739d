"""One container: created, attached to, started, renamed, removed. Every call to the daemon is made in a thread."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_exponential

from dagger_exp.errors import SandboxError
from dagger_exp.sandboxes.process import last_line
from dagger_exp.sandboxes.session import Session

if TYPE_CHECKING:
    from docker import DockerClient

CLIENT_TIMEOUT_S = 120
REMOVE_TIMEOUT_S = 60.0
IS_ENDING = (409, 500)
"""How Docker and podman answer who removes a container that is ending; soon it is not found."""
FRAME = struct.Struct(">BxxxI")
"""Before each piece of output: of which stream it is, and its length."""
STDERR = 2
MAX_WORDS_BYTES = 2000


class Clients:
    """Clients of the daemon, each in one thread at a time, since one that threads share loses answers.

    Between calls they are kept while `is_kept` says so: to make one takes as long as to create a container.
    """

    def __init__(self) -> None:
        self.is_kept = False
        self._idle: list[DockerClient] = []

    @contextmanager
    def one(self) -> Iterator[DockerClient]:
        """Hold a client; raises `SandboxError`, also for what the daemon says to it."""
        import requests
        from docker.errors import DockerException

        with ExitStack() as at_end:
            try:
                client = self._idle.pop()
            except IndexError:
                client = _connect()
            at_end.callback(client.close)
            try:
                yield client
            except (DockerException, requests.RequestException) as error:
                said = getattr(error, "explanation", None) or str(error)
                raise SandboxError(f"the Docker daemon refuses: {' '.join(str(said).split()).rstrip('.')}.") from error
            if self.is_kept:
                at_end.pop_all()
                self._idle.append(client)

    def close(self) -> None:
        """Keep none any longer."""
        self.is_kept = False
        while self._idle:
            self._idle.pop().close()


def _connect() -> DockerClient:
    import docker
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=CLIENT_TIMEOUT_S)
    except DockerException as error:
        raise SandboxError(
            "no Docker daemon answers: start one (systemctl start docker), or name the socket of Docker or podman in "
            "DOCKER_HOST, as in unix:///run/podman/podman.sock."
        ) from error


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


def remove(client: DockerClient, container_id: str) -> None:
    """Remove a container with all that runs in it, also where it is about to remove itself."""
    from docker.errors import APIError, NotFound

    is_ending = retry_if_exception(lambda error: isinstance(error, APIError) and error.status_code in IS_ENDING)
    with suppress(NotFound):
        for attempt in Retrying(
            retry=is_ending, wait=wait_exponential(0.02, max=1.0), stop=stop_after_delay(REMOVE_TIMEOUT_S), reraise=True
        ):
            with attempt:
                client.api.remove_container(container_id, force=True, v=True)


@dataclass
class Container:
    """A running container.

    Args:
        id: as the daemon names it.
        stream: both ways, to and from its first process.
        clients: to rename and remove it.
    """

    id: str
    stream: socket.socket
    clients: Clients

    @classmethod
    def start(cls, clients: Clients, image: str, options: dict[str, Any]) -> Container:
        """Start one that ends as soon as nobody is at the other end of its stdin; raises `SandboxError`."""
        with clients.one() as client:
            with found(image):
                handle = client.containers.create(image, **options)
            assert handle.id
            with ExitStack() as at_failure:
                at_failure.callback(remove, client, handle.id)
                stream = at_failure.enter_context(_attach(client, handle.id))
                handle.start()
                at_failure.pop_all()
            return cls(handle.id, stream, clients)

    async def session(self) -> Session:
        """Return what speaks to it."""
        reader, writer = await asyncio.open_connection(sock=self.stream)
        output, words = asyncio.StreamReader(), bytearray()
        pump = asyncio.create_task(_separate(reader, output, words))

        async def end() -> None:
            await asyncio.to_thread(self._remove)
            await pump

        async def last_words() -> str:
            return last_line(bytes(words))

        return Session(output, writer, end=end, last_words=last_words, rename=self.rename)

    async def rename(self, name: str) -> None:
        """Give it a name, made plain and unique, for those who look at `docker ps`."""
        plain = re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)
        with suppress(SandboxError):  # one that has just ended is found out at its first command
            await asyncio.to_thread(self._rename, f"{plain}-{self.id[:8]}")

    def _rename(self, name: str) -> None:
        with self.clients.one() as client:
            client.api.rename(self.id, name)

    def _remove(self) -> None:
        with self.clients.one() as client:
            remove(client, self.id)


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
