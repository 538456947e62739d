"""What every kind of sandbox promises to those who use it."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from dagger_exp.errors import SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.session import Session
from tests.sandboxes.conftest import MakePool, host_processes


def play(make_pool: MakePool, act: Callable[[Session], Awaitable[None]], spec: SandboxSpec | None = None) -> None:
    async def run() -> None:
        pool = make_pool()
        async with pool.connected():
            await act(await pool.open(spec or SandboxSpec(), "0/task/0"))

    asyncio.run(run())


def test_script_gives_exit_code_and_both_streams_in_order(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        done = await sandbox.exec("pwd; echo one; echo two >&2; echo three; exit 7", 20)
        assert (done.exit_code, done.output, done.timed_out) == (7, "/work\none\ntwo\nthree\n", False)
        assert (await sandbox.exec("kill -SEGV $$", 20)).exit_code == 128 + 11
        assert (await sandbox.exec("echo \ud800 'ü'", 20)).output.endswith("ü\n")

    play(make_pool, act)


def test_time_out_ends_the_tree_and_leaves_the_files(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        began = time.monotonic()
        done = await sandbox.exec("echo kept > file; echo said; (setsid sleep 98765 &) ; sleep 98765", 0.5)
        assert (done.exit_code, done.output, done.timed_out) == (None, "said\n", True)
        assert time.monotonic() - began < 300
        assert not host_processes("sleep 98765")
        assert (await sandbox.exec("cat file", 20)).output == "kept\n"

    play(make_pool, act)


def test_nothing_outlives_its_script(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        done = await sandbox.exec("nohup sleep 98764 >/dev/null 2>&1 & (setsid sleep 98764 &); echo started", 20)
        assert (done.exit_code, done.output) == (0, "started\n")
        assert not host_processes("sleep 98764")

    play(make_pool, act)


def test_files_go_in_and_out_and_links_are_not_followed(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        content = bytes(range(256)) * 5000
        await sandbox.write_files({"a/b/c": content, "/work/d": b"", "ü é": b"x"})
        assert await sandbox.read_file("a/b/c") == content
        assert await sandbox.read_file("/work/d") == b""
        assert (await sandbox.exec("cat 'ü é'; echo >> a/b/c", 20)).output == "x"  # it belongs to the commands
        await sandbox.exec("ln -s /etc/passwd link; ln -s /etc folder; mkfifo fifo; ln -s /tmp out", 20)
        for path in ("link", "folder/passwd", "fifo", "/dev/null", "a", "absent", "", "/"):
            with pytest.raises(FileNotFoundError):
                await sandbox.read_file(path)
        for path in ("out/x", "../tmp/x", "/tmp/x", "link", "a"):
            with pytest.raises(OSError, match=r"\w"):
                await sandbox.write_files({path: b"x"})
        assert (await sandbox.exec("ls /tmp", 20)).output == ""

    play(make_pool, act)


def test_a_file_that_is_too_large_is_no_absent_one(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        await sandbox.exec("head -c 4M /dev/zero > most; head -c 15M /dev/zero > more", 20)
        assert len(await sandbox.read_file("most")) == 4 << 20
        with pytest.raises(OSError, match="it has more than 4 MiB") as refused:
            await sandbox.read_file("more")
        assert refused.value.errno == errno.EFBIG
        assert (await sandbox.exec("echo on", 20)).output == "on\n"

    play(make_pool, act)


def test_output_without_end_costs_no_memory(make_pool: MakePool) -> None:
    async def act(sandbox: Session) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        done = await sandbox.exec("echo first; yes | head -c 3G; echo last", 60)
        assert done.output.startswith("first\ny\n")
        assert done.output.endswith("y\nlast\n")
        assert len(done.output) == 20_000
        assert done.num_cut_bytes == (3 << 30) + len("first\nlast\n") - 20_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB

    play(make_pool, act)


def test_environment_is_that_of_the_spec(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "do-not-tell")
    (tmp_path / "data").write_text("mounted")
    tmp_path.chmod(0o755)

    async def act(sandbox: Session) -> None:
        everything = "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'"
        output = (await sandbox.exec(everything, 20)).output
        assert "do-not-tell" not in output
        assert "COLOUR=red\n" in output
        assert (await sandbox.exec("cat /mnt/here/data; echo x > /mnt/here/data", 20)).output.startswith("mounted")
        assert (tmp_path / "data").read_text() == "mounted"

    spec = SandboxSpec(mounts=((str(tmp_path), "/mnt/here"),), environment=(("COLOUR", "red"),))
    play(make_pool, act, spec)


def test_no_network_not_even_the_loopback_of_this_machine(make_pool: MakePool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), listener.accept()[0]:
            pass  # it can be reached from here
        script = f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {port}), 3)'"

        async def act(sandbox: Session) -> None:
            assert "ConnectionRefusedError" in (await sandbox.exec(script, 20)).output
            names = await sandbox.exec("sed -n 's/^ *\\([^:]*\\):.*/\\1/p' /proc/net/dev", 20)
            assert set(names.output.split()) <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0"}

        play(make_pool, act)


def test_sixteen_at_once_and_no_more(make_pool: MakePool) -> None:
    async def run() -> None:
        pool = make_pool(max_live=16, num_ready=3)
        async with pool.connected():
            opened = [await pool.open(SandboxSpec(), str(index)) for index in range(16)]
            waiting = asyncio.create_task(pool.open(SandboxSpec(), "16"))
            done = await asyncio.gather(*(box.exec(f"echo {i} > x; cat x", 60) for i, box in enumerate(opened)))
            assert [int(one.output) for one in done] == list(range(16))
            assert not waiting.done()
            await opened[3].close()
            assert (await (await waiting).exec("ls", 20)).output == ""
            with pytest.raises(SandboxError, match="closed"):
                await opened[3].exec("true", 5)

    asyncio.run(run())
