"""Sandboxes that are containers of a Docker daemon, or of podman's socket, which serves the same interface."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dagger_exp.errors import ConfigError, SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes import owner
from dagger_exp.sandboxes.container import Clients, Container, found, remove
from dagger_exp.sandboxes.forks import SOCKET_BYTES
from dagger_exp.sandboxes.limits import SHARED_MIB, Limits
from dagger_exp.sandboxes.pool import Pool
from dagger_exp.sandboxes.session import Session, init_command

RUN_LABEL, OWNER_LABEL = "dagger-exp.run", "dagger-exp.owner"
BUFFER_LIMITS = dict.fromkeys(("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"), SOCKET_BYTES)


class DockerSandboxes(Pool):
    """Containers without network and capabilities; the image needs `python3` and `sh`.

    A container carries the run as a label and the episode in its name. It ends when the process that started it does,
    and removes itself.

    Args:
        run_id: of the run that they belong to.
        limits: of each sandbox.
        max_live: at the same time, those included that are started ahead.
        num_ready: started ahead, of the spec that was asked for last.
        image: where the env names none.
        read_only: whether the image's own files cannot be written. Where they can, what is written there counts to no
            limit but the size of one file.
    """

    def __init__(
        self,
        *,
        run_id: str,
        limits: Limits,
        max_live: int = 16,
        num_ready: int = 2,
        image: str | None = None,
        read_only: bool = True,
    ) -> None:
        super().__init__(run_id=run_id, limits=limits, max_live=max_live, num_ready=num_ready)
        self.image = image
        self.read_only = read_only
        self._clients = Clients()
        self._users: dict[str, str] = {}
        self._daemon: tuple[bool, bool] | None = None

    @property
    def python(self) -> str:
        """The image."""
        return str(self.image)

    def check(self) -> None:
        """Look whether a daemon answers and has the image; raises `ConfigError`."""
        try:
            if self.image is not None:
                self._user(self.image)
            else:
                with self._clients.one() as client:
                    client.ping()
        except SandboxError as error:
            raise ConfigError(str(error)) from error

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold the sandboxes of one event loop, and the clients that speak of them."""
        self._clients.is_kept = True
        try:
            async with super().connected():
                yield
        finally:
            self._clients.close()

    async def _start(self, spec: SandboxSpec) -> Session:
        image = spec.image or self.image
        if image is None:
            raise SandboxError("sandbox=docker has no image: give sandbox.image=NAME, as the env names none.")
        container = await asyncio.to_thread(self._container, image, spec)
        session = await container.session()
        await session.start()
        return session

    async def sweep(self) -> None:
        """Remove the containers of runs of this machine that are no more."""
        await asyncio.to_thread(self._sweep)

    def _sweep(self) -> None:
        with self._clients.one() as client:
            for container in client.api.containers(all=True, filters={"label": OWNER_LABEL}):
                if owner.is_gone(container["Labels"][OWNER_LABEL]):
                    remove(client, container["Id"])

    def _container(self, image: str, spec: SandboxSpec) -> Container:
        return Container.start(self._clients, image, self._options(spec, self._user(image)))

    def _user(self, image: str) -> str:
        """Return the user of an image, as a number or a name; empty where it is root."""
        if image not in self._users:
            with self._clients.one() as client, found(image):
                self._users[image] = client.api.inspect_image(image)["Config"]["User"].partition(":")[0]
        return self._users[image]

    def _facts(self) -> tuple[bool, bool]:
        """Return whether it is podman that serves the interface, and whether limits of memory hold."""
        if self._daemon is None:
            with self._clients.one() as client:
                served_by = ", ".join(part["Name"] for part in client.version().get("Components") or ())
                self._daemon = "Podman" in served_by, bool(client.info().get("MemoryLimit"))
        return self._daemon

    def _options(self, spec: SandboxSpec, user: str) -> dict[str, Any]:
        limits = self.limits
        is_podman, is_counted = self._facts()
        memory = f"{limits.total_mib}m"
        disk = f"size={limits.disk_mib}m,mode=1777,exec"
        if is_podman:  # which gives a folder to the user by itself, and cannot count files
            owned = f"{disk},U"
        else:  # daemons that are not new keep the mode of a folder that the image has, but not its owner
            disk += f",nr_inodes={limits.num_inodes}"
            owned = f"{disk},uid={user}" if user.isdecimal() else disk
        return {
            "entrypoint": [],
            "command": init_command(limits, dict(spec.environment), is_counted=is_counted),
            "stdin_open": True,
            "auto_remove": True,
            "network_mode": "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "read_only": self.read_only,
            "tmpfs": {"/work": owned, "/tmp": disk},  # noqa: S108 - inside
            "shm_size": f"{SHARED_MIB}m",
            "volumes": {source: {"bind": path, "mode": "ro"} for source, path in spec.mounts},
            "mem_limit": memory,
            "memswap_limit": memory,
            "pids_limit": limits.max_processes + 1,
            "oom_score_adj": 500,  # commands cannot go below, so that no other program of the machine is ended for them
            "sysctls": BUFFER_LIMITS,
            "log_config": {"Type": "none"},  # else the daemon keeps all answers on the disk
            "use_config_proxy": False,  # which may hold a password
            "environment": {"HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", "TERM": "dumb"},  # noqa: S108
            "labels": {RUN_LABEL: self.run_id, OWNER_LABEL: owner.this()},
        }
