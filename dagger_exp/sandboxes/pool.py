"""How many sandboxes live, and which are started before they are asked for? The same for every kind."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from dagger_exp.errors import ConfigError, SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.sandboxes.session import Session


@dataclass
class Held:
    """The sandboxes of one event loop: in use, and being started or ready."""

    in_use: set[Session] = field(default_factory=set)
    ahead: list[tuple[SandboxSpec, asyncio.Task[Session]]] = field(default_factory=list)
    room: asyncio.Condition = field(default_factory=asyncio.Condition)
    num_opening: int = 0


class Pool(ABC):
    """`Sandboxes` but for how one is started.

    Args:
        run_id: of the run that they belong to.
        limits: of each sandbox.
        max_live: at the same time, those included that are started ahead.
        num_ready: started ahead, of the spec that was asked for last.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(self, *, run_id: str, limits: Limits, max_live: int, num_ready: int) -> None:
        if max_live < 1 or num_ready < 0:
            raise ConfigError("sandbox.max_live must be at least 1, and sandbox.num_ready at least 0.")
        self.run_id = run_id
        self.limits = limits
        self.max_live = max_live
        self.num_ready = num_ready
        self._held: Held | None = None

    @property
    @abstractmethod
    def python(self) -> str:
        """What tells their `python3` from others before one is started: its version, or the image that has it."""

    @abstractmethod
    def check(self) -> None:
        """Look whether this machine can start one; raises `ConfigError` that names what is missing."""

    @abstractmethod
    async def _start(self, spec: SandboxSpec) -> Session:
        """Start one; raises `SandboxError`, and leaves nothing behind where it does not come up."""

    async def start(self, spec: SandboxSpec) -> Session:
        """Start one, also for later; raises `SandboxError`."""
        # Not cancelled half way: what nobody knows of yet could not be removed.
        starting = asyncio.create_task(self._start(spec))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            await asyncio.shield(_close(starting))
            raise

    async def sweep(self) -> None:  # noqa: B027 - most kinds leave nothing
        """Remove what runs have left behind that were killed."""

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold the sandboxes of one event loop; all are closed at its end, also after an exception."""
        await self.sweep()
        held = self._held = Held()
        try:
            yield
        finally:
            self._held = None
            await _end(held)

    async def open(self, spec: SandboxSpec, episode: str) -> Session:
        """Return a started sandbox, once there is room; raises `SandboxError`."""
        held = self._held
        if held is None:
            raise SandboxError("sandboxes can be opened while the pool is connected, and no longer.")
        async with held.room:
            await held.room.wait_for(lambda: len(held.in_use) + held.num_opening < self.max_live)
            held.num_opening += 1
        session: Session | None = None
        try:
            session = await self._take(held, spec)
            if self._held is not held:
                raise SandboxError("the pool was closed while a sandbox started.")
            held.in_use.add(session)
            session.ended.add_done_callback(lambda _: asyncio.ensure_future(_leave(held, session)))
            session.name(f"dagger-exp-{self.run_id}-{episode}")
        except BaseException:
            if session:
                await session.close()
            raise
        finally:
            held.num_opening -= 1
            await _tell(held)
        self._start_ahead(held, spec)
        return session

    async def _take(self, held: Held, spec: SandboxSpec) -> Session:
        """Return one that was started ahead, or a new one in the place of one of another spec."""
        for pair in [pair for pair in held.ahead if pair[0] == spec]:
            if pair in held.ahead:  # nobody took it while another one was looked at
                held.ahead.remove(pair)
                session = await pair[1]
                if not session.is_gone:
                    return session
                await session.close()
        if held.ahead and len(held.in_use) + held.num_opening + len(held.ahead) > self.max_live:
            await _discard(held.ahead.pop(0)[1])
        return await self.start(spec)

    def _start_ahead(self, held: Held, spec: SandboxSpec) -> None:
        room = self.max_live - len(held.in_use) - held.num_opening - len(held.ahead)
        wanted = self.num_ready - sum(found == spec for found, _ in held.ahead)
        for _ in range(min(room, wanted)):
            held.ahead.append((spec, asyncio.create_task(self.start(spec))))


async def _end(held: Held) -> None:
    ending = [_discard(task) for _, task in held.ahead] + [session.close() for session in held.in_use]
    await asyncio.gather(*ending)


async def _discard(task: asyncio.Task[Session]) -> None:
    """Close one that nobody has asked for, whether it is there yet or not."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await _close(task)


async def _close(starting: asyncio.Task[Session]) -> None:
    with suppress(SandboxError):
        await (await starting).close()


async def _leave(held: Held, session: Session) -> None:
    held.in_use.discard(session)
    await _tell(held)


async def _tell(held: Held) -> None:
    async with held.room:
        held.room.notify_all()
