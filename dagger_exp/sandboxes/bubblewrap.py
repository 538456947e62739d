"""Sandboxes of this machine's own programs, by bubblewrap: no root, no daemon, no image, and nothing on the disk."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path, PurePosixPath

from dagger_exp.errors import ConfigError, SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.limits import CGROUPS, LEAF, SHARED_MIB, Limits
from dagger_exp.sandboxes.pool import Pool
from dagger_exp.sandboxes.process import spawn
from dagger_exp.sandboxes.session import Session, init_settings
from dagger_exp.sandboxes.zygote import Mounts, Root, Zygote, Zygotes, zygote_command

OWN_PYTHON = "python{}.{}".format(*sys.version_info)
SYSTEM_FOLDERS = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
SYSTEM_FILES = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/mime.types")
HIDDEN = ("lib*/python3*/site-packages", "lib*/python3*/dist-packages", "etc")
OWN_FILES = ("passwd", "group", "hosts")
"""Of `/etc`, with a user for the commands."""
UIDS = (1 << 30, 1 << 31)
"""Where a run of root takes the users of its sandboxes from: no account of a machine is there."""
SEAL = "--dir /work --dir /tmp --remount-ro /dev --remount-ro /".split()
SCOPE = "systemd-run {user} --scope --quiet --collect --property=Delegate=yes --"
DIVIDE = f"""own=/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup) && mkdir "$own{LEAF}" &&
echo $$ >"$own{LEAF}/cgroup.procs" && echo +memory >"$own/cgroup.subtree_control"; exec "$@\""""
"""Runs a program in a cgroup below the one that systemd gave, where others can be made beside it (version 2)."""
OWN_COUNT = (5, 14)
"""Since this kernel a user's processes are counted by user namespace."""


class BubblewrapSandboxes(Pool):
    """Sandboxes that see the programs of this machine, read only, and nothing else of it.

    `python3` is the interpreter that runs this, without its packages. All that commands write is in memory, and gone
    with the sandbox.

    Args:
        run_id: of the run that they belong to.
        limits: of each sandbox.
        max_live: at the same time, those included that are started ahead.
        num_ready: started ahead, of the spec that was asked for last.
    """

    def __init__(self, *, run_id: str, limits: Limits, max_live: int = 16, num_ready: int = 2) -> None:
        super().__init__(run_id=run_id, limits=limits, max_live=max_live, num_ready=num_ready)
        self._zygotes: Zygotes | None = None
        self._scope: list[str] = []

    @property
    def python(self) -> str:
        """The version of the interpreter that runs this."""
        return OWN_PYTHON

    def check(self) -> None:
        """Look whether bubblewrap is there and may do its work; raises `ConfigError`."""
        if shutil.which("bwrap") is None:
            raise ConfigError("sandbox=bubblewrap needs bwrap: install the package bubblewrap (apt, dnf, conda).")
        try:
            asyncio.run(self._tried())
        except SandboxError as error:
            raise ConfigError(
                f"sandbox=bubblewrap cannot start a sandbox here ({str(error).rstrip('.')}): put python3 on the PATH, "
                "let plain users make user namespaces (sysctl user.max_user_namespaces, "
                "kernel.apparmor_restrict_unprivileged_userns), or take docker."
            ) from error

    async def _tried(self) -> None:
        async with self.connected():
            await (await self._start(SandboxSpec())).close()

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold the sandboxes of one event loop, and what they are forked from."""
        self._scope = await _scope()
        zygotes = self._zygotes = Zygotes(self._root)
        try:
            async with super().connected():
                yield
        finally:
            self._zygotes = None
            await zygotes.end()

    async def _start(self, spec: SandboxSpec) -> Session:
        if spec.image is not None:
            raise SandboxError(f"bubblewrap has no images, and the env asks for {spec.image}: take sandbox=docker.")
        if (zygotes := self._zygotes) is None:
            raise SandboxError("the pool was closed while a sandbox started.")
        zygote = await zygotes.get(spec.mounts)
        try:
            return await self._forked(zygote, spec)
        except SandboxError:
            if zygote.is_alive:
                raise
        return await self._forked(await zygotes.get(spec.mounts), spec)  # it may have died before this was asked for

    async def _forked(self, zygote: Zygote, spec: SandboxSpec) -> Session:
        uid = UIDS[0] + secrets.randbelow(UIDS[1] - UIDS[0]) if os.getuid() == 0 else None
        settings = init_settings(
            self.limits,
            environment=dict(spec.environment),
            tmpfs=self._tmpfs(owner=uid or 0),
            uid=uid,
            maps_user=True,
            counts_processes=uid is not None or _kernel() >= OWN_COUNT,
            is_counted=zygote.groups is not None,
        )
        return await zygote.fork(settings, self.limits.total_mib)

    def _root(self, mounts: Mounts) -> Root:
        bound = [word for source, path in mounts for word in _bound(source, path)]
        zygote = zygote_command(f"dagger-exp-{self.run_id}")
        command = [*self._scope, *_namespaces(), *_system(), *bound, *SEAL, "--", *zygote]
        shown = ["/usr", *SYSTEM_FOLDERS, sys.base_prefix, *(path for _, path in mounts)]
        return command, shown, _hidden()

    def _tmpfs(self, owner: int) -> dict[str, str]:
        size = f"size={self.limits.disk_mib}m,nr_inodes={self.limits.num_inodes}"
        shared = f"size={SHARED_MIB}m,nr_inodes={self.limits.num_inodes},mode=1777"
        return {"/work": f"{size},mode=755,uid={owner},gid={owner}", "/tmp": f"{size},mode=1777", "/dev/shm": shared}  # noqa: S108 - inside


async def _scope() -> list[str]:
    """Return what runs a program where it may make cgroups, if systemd gives that: to a root, or to a plain user."""
    scope = SCOPE.format(user="--user" if os.getuid() else "").split()
    if shutil.which(scope[0]) is None or not (CGROUPS / "cgroup.controllers").exists():
        return []
    tried = await spawn([*scope, "true"], stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL)
    await tried.communicate()
    return [*scope, "sh", "-c", DIVIDE, "sh"] if tried.returncode == 0 else []


def _namespaces() -> list[str]:
    """Return how bwrap isolates: a root keeps its user, so that it can give each sandbox another one.

    No `--die-with-parent`: a bwrap that is killed while it starts leaves a child that waits for ever. The zygote ends
    where its socket does, and this machine's kernel closes that, whatever becomes of us.
    """
    shared = "--unshare-pid --unshare-net --unshare-ipc --unshare-uts --unshare-cgroup-try --as-pid-1 "
    shared += "--hostname sandbox --clearenv --cap-drop ALL --cap-add CAP_SYS_ADMIN --cap-add CAP_NET_ADMIN"
    as_root = "--cap-add CAP_SETUID --cap-add CAP_SETGID --cap-add CAP_KILL"
    as_user = "--unshare-user --uid 0 --gid 0 --cap-add CAP_SETFCAP"  # without the last, a root maps no further user
    return ["bwrap", *shared.split(), *(as_root if os.getuid() == 0 else as_user).split()]


def _system() -> list[str]:
    """Return what bwrap shows of this machine, all of it read only."""
    folders = [word for folder in SYSTEM_FOLDERS for word in _shown(Path(folder))]
    etc = [word for path in SYSTEM_FILES for word in ("--ro-bind-try", path, path)]
    own = files("dagger_exp.sandboxes").joinpath("etc")
    etc += [word for name in OWN_FILES for word in ("--ro-bind", str(own.joinpath(name)), f"/etc/{name}")]
    python = [] if sys.base_prefix.startswith("/usr") else _bound(sys.base_prefix, sys.base_prefix)
    path = f"{sys.base_prefix}/bin:/usr/local/bin:/usr/bin:/bin"
    variables = {"PATH": path, "HOME": "/tmp", "USER": "agent", "LANG": "C.UTF-8", "TERM": "dumb"}  # noqa: S108 - inside
    environment = [word for item in variables.items() for word in ("--setenv", *item)]
    etc = ["--perms", "0755", "--dir", "/etc", *etc]
    shown = ["--proc", "/proc", "--dev", "/dev", "--ro-bind", "/usr", "/usr", *folders, *etc, *python]
    return [*shown, *environment]


def _hidden() -> list[str]:
    """Return what is laid over installed packages, among which a repair could be found, and over settings."""
    roots = sorted({sys.base_prefix, "/usr", "/usr/local"})
    found = [path for root in roots for pattern in HIDDEN for path in sorted(Path(root).glob(pattern))]
    return [str(path) for path in found if path.is_dir() and not path.is_symlink()]


def _shown(folder: Path) -> list[str]:
    if folder.is_symlink():
        return ["--symlink", str(folder.readlink()), str(folder)]
    return ["--ro-bind-try", str(folder), str(folder)]


def _bound(source: str, path: str) -> list[str]:
    """Return a read-only mount; bwrap would make the folders above it for its own user alone."""
    parents = [str(parent) for parent in reversed(PurePosixPath(path).parents)][1:]
    return [word for parent in parents for word in ("--perms", "0755", "--dir", parent)] + ["--ro-bind", source, path]


def _kernel() -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
