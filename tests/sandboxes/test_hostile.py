"""Commands that mean harm: none succeeds, none harms its neighbour, and its own sandbox serves on."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dagger_exp.protocols import Execution, SandboxSpec
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import GROUP, memory_groups
from tests.sandboxes.conftest import HARDENED, SMALL, MakePool, host_processes
from tests.sandboxes.hostile import ATTACKS

SECRET = "the-word-that-nobody-may-read"
TIMEOUT_S = 4.0
REPOSITORY = Path(__file__).parents[2]


@dataclass
class Planted:
    """What an attack looks for on this machine."""

    home: Path
    tmp_file: Path
    port: int
    abstract: str


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planted]:
    home = tmp_path / "home"
    home.mkdir()
    (home / "secret").write_text(SECRET)
    tmp_file = Path(f"/tmp/secret-{os.getpid()}")
    tmp_file.write_text(SECRET)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    abstract = f"dagger-exp-{os.getpid()}"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as named:
        named.bind(f"\0{abstract}")
        named.listen()
        yield Planted(home, tmp_file, listener.getsockname()[1], abstract)
    tmp_file.unlink()


@pytest.mark.parametrize("make_pool", HARDENED, indirect=True)
@pytest.mark.parametrize("name", ATTACKS)
def test_attack_fails_and_ends_its_own_episode_only(
    make_pool: MakePool, planted: Planted, name: str, request: pytest.FixtureRequest
) -> None:
    script = ATTACKS[name].format(**vars(planted))
    if name == "spared_when_memory_ends" and "docker" in request.node.callspec.id and not can_raise_limits():
        pytest.xfail("the root of this machine lacks CAP_SYS_RESOURCE, without which Docker gives no floor")

    async def attack() -> tuple[Execution, Execution, Execution, float]:
        pool = make_pool()
        async with pool.connected():
            attacker, neighbour = [await pool.open(SandboxSpec(), which) for which in ("attacker", "neighbour")]
            await neighbour.write_files({"mine": b"untouched"})
            began = time.monotonic()
            done = await attacker.exec(script, TIMEOUT_S)
            took_s = time.monotonic() - began
            left = await attacker.exec("echo served; for p in /proc/[0-9]*; do echo ${p#/proc/}; done", 20)
            return done, left, await neighbour.exec("cat mine", 20), took_s

    done, left, neighbour, took_s = asyncio.run(attack())
    assert "BREACH" not in done.output.splitlines()  # a shell may show the script that was killed
    assert SECRET not in done.output
    assert len(done.output.encode()) <= 3 * 20_000  # an undecodable byte is shown by a character of three
    assert took_s < TIMEOUT_S + 300
    assert left.output.startswith("served\n1\n")
    assert len(left.output.split()) == 3, "only the first process and the shell that asks"
    assert neighbour.output == "untouched"
    assert (planted.home / "secret").read_text() == SECRET
    assert [path.name for path in planted.home.iterdir()] == ["secret"]
    assert not host_processes("sleep 76543")


def can_raise_limits() -> bool:
    capabilities = Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    return bool(int(capabilities, 16) >> 24 & 1)


@pytest.mark.bubblewrap
@pytest.mark.parametrize("make_pool", ["bubblewrap"], indirect=True)
def test_locks_on_what_is_only_shown_hold_inside_alone(make_pool: MakePool, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "data").write_text("shown")
    python, paths = Path(sys.base_prefix, "lib/python3.11/os.py"), ("/usr/bin/env", "/usr/bin", "/mnt/data")
    script = "".join(f"exec {number}<{path}; flock -n {number} && " for number, path in enumerate((python, *paths), 11))

    async def act() -> tuple[str, list[Path]]:
        pool = make_pool()
        async with pool.connected():
            box = await pool.open(SandboxSpec(mounts=((str(tmp_path), "/mnt"),)), "0")
            locking = asyncio.create_task(box.exec(f"{script} echo locked; sleep 0.5", 20))
            blocked: list[Path] = []
            while not locking.done():
                blocked += [path for path in (python, *map(Path, paths[:2]), tmp_path / "data") if is_locked(path)]
                await asyncio.sleep(0.02)
            return (await locking).output, blocked

    assert asyncio.run(act()) == ("locked\n", [])


def is_locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


TAKES_ALL = """
import ctypes, os, time
libc = ctypes.CDLL(None)
for _ in range(12):
    if os.fork() == 0:
        break
kept = []
try:
    for _ in range(120):
        kept.append(os.pipe())
        libc.fcntl(kept[-1][0], 1031, 1 << 20)
        libc.inotify_init1(0)
        libc.timer_create(0, None, ctypes.byref(ctypes.c_void_p()))
except OSError:
    pass
time.sleep(1)
"""


@pytest.mark.bubblewrap
@pytest.mark.parametrize("make_pool", ["bubblewrap"], indirect=True)
def test_what_all_processes_of_a_user_share_is_left_to_the_others(make_pool: MakePool) -> None:
    async def act() -> tuple[str, int, int]:
        pool = make_pool()
        async with pool.connected():
            box = await pool.open(SandboxSpec(), "0")
            taking = asyncio.create_task(box.exec(f"python3 -c '{TAKES_ALL}'", 20))
            before, num_queued = num_signals(), 0
            while not taking.done():
                num_queued = max(num_queued, num_signals() - before)
                await asyncio.sleep(0.01)
            return (await taking).output, num_queued, pipe_size()

    output, num_queued, size = asyncio.run(act())
    if os.getuid() != 0:  # else a sandbox has a user of its own
        assert "[sandbox: ended, more than 544 open files]" in output
    assert num_queued <= 300
    assert size == 65536


def pipe_size() -> int:
    """Return how much a new pipe holds: less, where the pipes of this user hold much."""
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb"), os.fdopen(write_end, "wb"):
        return fcntl.fcntl(read_end, fcntl.F_GETPIPE_SZ)


def num_signals() -> int:
    """Return how many signals are queued for all processes of this user."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("SigQ:")[2].partition("/")[0])


@pytest.mark.bubblewrap
def test_a_cgroup_bounds_what_a_sandbox_holds_and_is_gone_with_it() -> None:
    async def run() -> None:
        pool = BubblewrapSandboxes(run_id="group", limits=SMALL, num_ready=0)
        async with pool.connected():
            box = await pool.open(SandboxSpec(), "0")
            assert pool._zygotes
            groups = (await pool._zygotes.get(())).groups
            if groups is None:
                pytest.xfail("no cgroup with a limit of memory can be made here, as for most plain users")
            own = next(groups.glob(f"{GROUP}*"))
            limit = next(own / name for name in ("memory.max", "memory.limit_in_bytes") if (own / name).exists())
            assert int(limit.read_text()) == (128 + 2 * 32 + 2 * 64) << 20
            assert (await box.exec("cat /proc/self/cgroup | grep -c dagger", 20)).output == "0\n"
            await box.close()
            assert not own.exists()
            left = groups / f"{GROUP}{ended_process()} 0"
            left.mkdir()
            assert await memory_groups(os.getpid(), waits=False) in (groups, None)  # as the next run looks for its own
            assert not left.exists() or groups.name.endswith(".scope")  # which systemd removes with all below

    asyncio.run(run())


def ended_process() -> str:
    code = "from dagger_exp.sandboxes import owner; print(owner.this())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Return a folder of a plain user; not below pytest's own, which each of its starts closes to others."""
    with tempfile.TemporaryDirectory() as folder:
        os.chown(folder, 1234, 1234)
        yield Path(folder)


@pytest.mark.bubblewrap
@pytest.mark.timeout(1800)
def test_attacks_fail_for_a_plain_user_too(scratch: Path) -> None:
    if os.getuid() != 0 or shutil.which("bwrap") is None or shutil.which("setpriv") is None:
        pytest.skip("needs root, who can become a plain user, setpriv and bubblewrap")
    become = "setpriv --reuid 1234 --regid 1234 --clear-groups --inh-caps=-all --bounding-set=-all".split()
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--basetemp={scratch}/pytest"]
    tests += [
        f"{Path(__file__).parent}/test_hostile.py",
        f"{Path(__file__).parent}/test_contract.py",
        "-k",
        "bubblewrap and not apptainer and not plain_user",
    ]
    ended = subprocess.run(
        [*readable(Path(sys.base_prefix), REPOSITORY), *become, *tests],
        cwd=REPOSITORY,
        env={**os.environ, "HOME": str(scratch), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-3000:]
    assert f"{len(ATTACKS) + 9 + 2} passed" in ended.stdout


def readable(*folders: Path) -> list[str]:
    """Return what shows folders to every user, also below a home that only its owner may enter."""
    line = ["bwrap", "--dev-bind", "/", "/"]
    for folder in folders:
        closed = [above for above in reversed(folder.parents) if not above.stat().st_mode & 0o001]
        if closed:
            line += ["--perms", "0755", "--tmpfs", str(closed[0])]
            between = [above for above in reversed(folder.parents) if closed[0] in above.parents]
            line += [word for above in between for word in ("--perms", "0755", "--dir", str(above))]
            line += ["--bind", str(folder), str(folder)]
    return [*line, "--"]
