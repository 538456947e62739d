"""What is left of a run: nothing, however it ends."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dagger_exp.errors import SandboxError
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from tests.provider import wait_until
from tests.sandboxes.conftest import HARDENED, SMALL, MakePool, host_processes

RUNS = """
import asyncio, sys
from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.docker import DockerSandboxes
from dagger_exp.sandboxes.limits import Limits

async def main():
    given = dict(run_id=sys.argv[4], limits=Limits(disk_mib=32), num_ready=2)
    pool = DockerSandboxes(image=sys.argv[2], **given) if sys.argv[1] == "docker" else BubblewrapSandboxes(**given)
    async with pool.connected():
        spec = SandboxSpec(environment=(("MARK", sys.argv[4]),))
        boxes = [await pool.open(spec, str(index)) for index in range(3)]
        running = [asyncio.create_task(box.exec("echo > /tmp/leftover; sleep 65432", 600)) for box in boxes[1:]]
        await boxes[0].close()
        print("open", flush=True)
        if sys.argv[3] == "raise":
            raise ValueError("on purpose")
        await asyncio.gather(*running)

asyncio.run(main())
"""


def left(kind: str, mark: str) -> list[str]:
    """Return the processes, containers and mounts of a run whose sandboxes carry a mark."""
    if kind == "bubblewrap":
        return host_processes(mark)  # its mounts are in a namespace of their own, its files in memory
    folder = os.environ["DOCKER_HOST"].removeprefix("unix://").removesuffix("docker.sock")
    mounted = [line for line in Path("/proc/mounts").read_text().splitlines() if folder in line and "/merged" in line]
    listed = ["docker", "ps", "-aq", "--no-trunc"]
    containers = subprocess.run(listed, capture_output=True, text=True, check=True, timeout=600).stdout.split()
    return host_processes(mark) + mounted + containers


async def start_next(make_pool: MakePool) -> None:
    pool = make_pool()
    async with pool.connected():
        await (await pool.open(SandboxSpec(), "next")).exec("true", 20)


@pytest.mark.kill
@pytest.mark.parametrize("make_pool", HARDENED, indirect=True)
@pytest.mark.parametrize("end", ["raise", "interrupt", "kill"])
def test_nothing_is_left_of_a_run(make_pool: MakePool, request: pytest.FixtureRequest, end: str) -> None:
    kind = request.node.callspec.params["make_pool"]
    image = getattr(make_pool(), "image", "") or ""
    mark = f"{end}-{os.getpid()}"
    command = [sys.executable, "-c", RUNS, kind, image, end, mark]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout
    assert run.stderr
    with run, run.stdout, run.stderr:
        said = run.stdout.readline()
        if end == "interrupt":
            run.send_signal(signal.SIGINT)
        if end == "kill":
            run.kill()
        complaint = run.stderr.read()
        code = run.wait(60)
    assert said == "open\n", complaint
    assert code == {"raise": 1, "interrupt": -signal.SIGINT, "kill": -signal.SIGKILL}[end], complaint
    if end == "kill":  # each first process sees its stdin end; what is slow in that, the next start removes
        asyncio.run(start_next(make_pool))
        wait_until(lambda: not left(kind, mark))
    assert left(kind, mark) == []


@pytest.mark.docker
def test_sweep_removes_what_a_dead_run_left_and_nothing_else(docker: str) -> None:
    import docker as sdk

    from dagger_exp.sandboxes import owner
    from dagger_exp.sandboxes.docker import OWNER_LABEL, DockerSandboxes
    from dagger_exp.sandboxes.limits import Limits

    ended = subprocess.run(
        [sys.executable, "-c", "from dagger_exp.sandboxes import owner; print(owner.this())"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    elsewhere = " ".join(["other-machine", *ended.split()[1:]])
    with closing(sdk.from_env()) as client:
        made = [
            client.containers.run(
                docker, ["sleep", "600"], detach=True, network_mode="none", labels={OWNER_LABEL: name}
            )
            for name in (ended, elsewhere, owner.this())
        ]

        async def connect() -> None:
            async with DockerSandboxes(run_id="next", limits=Limits()).connected():
                pass

        asyncio.run(connect())
        kept = {container.id for container in client.containers.list(all=True)} & {one.id for one in made}
        assert kept == {made[1].id, made[2].id}
        for container in made[1:]:
            container.remove(force=True)


@pytest.mark.parametrize("make_pool", HARDENED, indirect=True)
def test_those_started_ahead_are_taken_and_ended(make_pool: MakePool) -> None:
    async def run() -> None:
        pool = make_pool(max_live=3, num_ready=2)
        async with pool.connected():
            first = await pool.open(SandboxSpec(), "0")
            assert pool._held
            ahead = [task for _, task in pool._held.ahead]
            assert len(ahead) == 2
            assert await pool.open(SandboxSpec(), "1") is await ahead[0]
            other = SandboxSpec(environment=(("A", "1"),))
            assert (await (await pool.open(other, "2")).exec("echo $A", 20)).output == "1\n"
            await first.close()
            opening = asyncio.create_task(pool.open(other, "3"))
            await asyncio.sleep(0)
            opening.cancel()  # while it starts
            with pytest.raises(asyncio.CancelledError):
                await opening
            held = pool._held
        assert not held.in_use
        assert all(task.cancelled() or task.result().ended.done() for task in ahead)

    asyncio.run(run())


@pytest.mark.bubblewrap
def test_where_sandboxes_are_forked_from_may_die_and_takes_only_those_it_has() -> None:
    async def run() -> None:
        pool = BubblewrapSandboxes(run_id=f"dies-{os.getpid()}", limits=SMALL, num_ready=2)
        async with pool.connected():
            boxes = [await pool.open(SandboxSpec(), str(index)) for index in range(6)]
            assert pool._held
            ahead = await asyncio.gather(*(task for _, task in pool._held.ahead))
            [bwrap, *_] = [int(line.split()[0]) for line in host_processes(pool.run_id)]
            running = [asyncio.create_task(box.exec("sleep 65432", 600)) for box in boxes]
            os.killpg(bwrap, signal.SIGKILL)
            failures = await asyncio.gather(*running, return_exceptions=True)
            assert {str(failure) for failure in failures} == {"the sandbox is gone: it said nothing."}
            await asyncio.gather(*(session._reader.read() for session in ahead), return_exceptions=True)  # to its end
            assert (await (await pool.open(SandboxSpec(), "next")).exec("echo again", 20)).output == "again\n"
        assert host_processes(pool.run_id) == []

    asyncio.run(run())


@contextmanager
def no_more_files() -> Iterator[None]:
    """Let this process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.bubblewrap
def test_all_that_cannot_start_say_why_and_leave_nothing() -> None:
    async def run() -> None:
        pool = BubblewrapSandboxes(run_id=f"starts-{os.getpid()}", limits=SMALL, num_ready=0)
        async with pool.connected():
            missing = SandboxSpec(mounts=(("/nowhere", "/opt/it"),))
            opened = await asyncio.gather(*(pool.open(missing, "0") for _ in range(4)), return_exceptions=True)
            assert all("Can't find source path /nowhere" in str(failure) for failure in opened), opened
            large = SandboxSpec(environment=(("A", "a" * 300_000),))
            with pytest.raises(SandboxError, match="environment of a sandbox is larger than 200 kB"):
                await pool.open(large, "1")
            with no_more_files(), pytest.raises(SandboxError, match="Too many open files"):
                await pool.open(SandboxSpec(), "2")
            assert (await (await pool.open(SandboxSpec(), "3")).exec("echo on", 20)).output == "on\n"
        assert host_processes(pool.run_id) == []

    asyncio.run(run())


@pytest.mark.bubblewrap
def test_a_run_names_its_sandboxes_and_no_command_sees_another_one() -> None:
    async def run() -> None:
        pool = BubblewrapSandboxes(run_id=f"named-{os.getpid()}", limits=SMALL, num_ready=0)
        async with pool.connected():
            boxes = [await pool.open(SandboxSpec(), f"a/task/{index}") for index in range(2)]
            sleeping = asyncio.create_task(boxes[0].exec("mkfifo /dev/shm/a; sleep 65432", 600))
            seen = await boxes[1].exec("pgrep -x sleep; find /dev/shm /dev/pts /work -mindepth 1", 20)
            assert seen.output == "/dev/pts/ptmx\n"
            # bubblewrap, its child, and the two, once their parents have gone
            wait_until(lambda: len(host_processes(f"dagger-exp-{pool.run_id}")) == 4)
            names = [Path("/proc", line.split()[0], "comm") for line in host_processes(pool.run_id)]
            assert {"a/task/0", "a/task/1"} <= {name.read_text().rpartition("-")[2].strip() for name in names}
            sleeping.cancel()
            await asyncio.wait([sleeping])

    asyncio.run(run())


@pytest.mark.bubblewrap
def test_packages_and_settings_of_this_machine_are_not_shown() -> None:
    async def run() -> None:
        pool = BubblewrapSandboxes(run_id="packages", limits=SMALL, num_ready=0)
        async with pool.connected():
            box = await pool.open(SandboxSpec(), "0")
            listed = "import os, site; print([os.listdir(p) for p in site.getsitepackages() if os.path.exists(p)])"
            for python in ("python3", "/usr/bin/python3"):
                seen = await box.exec(f"{python} -c '{listed}'", 60)
                assert not set(seen.output.strip()) - set("[], "), seen.output
            seen = await box.exec(
                "for d in /usr/lib/python3*/*-packages /usr/local/etc; do touch $d/x; ls $d; done", 60
            )
            assert all("touch:" in line or "ls:" in line for line in seen.output.splitlines()), seen.output

    asyncio.run(run())
