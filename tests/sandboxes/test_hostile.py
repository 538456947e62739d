"""Commands that mean harm: none succeeds, none harms its neighbour, and its own sandbox serves on."""

from __future__ import annotations

import asyncio
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
from tests.sandboxes.conftest import HARDENED, MakePool, host_processes
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
def test_attack_fails_and_ends_its_own_episode_only(make_pool: MakePool, planted: Planted, name: str) -> None:
    script = ATTACKS[name].format(**vars(planted))

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
    assert f"{len(ATTACKS) + 8} passed" in ended.stdout


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
