"""How much do sandboxes cost beside the raw client? Start and exec, and 16 episodes at once.

    python tests/benchmarks/bench_sandboxes.py [bubblewrap] [docker IMAGE]

Both are measured in turn in one run. The raw bubblewrap is one `bwrap ... sh -c true` per command, the raw docker the
SDK's create and start, and `exec_run`; neither gathers output, ends daemons or has a time-out, as a sandbox does. None
is started ahead. The first sandbox of a pool is told apart: bubblewrap's others are forked from what it starts.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from statistics import median, quantiles

from dagger_exp.protocols import SandboxSpec
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.docker import DockerSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.sandboxes.pool import Pool

NUM_STARTS, NUM_EXECS, NUM_EPISODES, NUM_TURNS = 40, 100, 16, 20
BWRAP = (
    "bwrap --unshare-all --die-with-parent --cap-drop ALL --ro-bind / / --dev /dev --proc /proc --tmpfs /tmp".split()
)
Act = Callable[[], object]


async def timed(act: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await act()
    return (time.perf_counter() - began) * 1000


def told(name: str, ours: list[float], raw: list[float]) -> None:
    ours_p50, ours_p95 = quantiles(ours, n=20)[9], quantiles(ours, n=20)[18]
    raw_p50, raw_p95 = quantiles(raw, n=20)[9], quantiles(raw, n=20)[18]
    print(
        f"{name}: {ours_p50 / raw_p50:.2f} x the raw client at p50, {ours_p95 / raw_p95:.2f} x at p95 "
        f"(ms: {ours_p50:.1f} and {ours_p95:.1f} beside {raw_p50:.1f} and {raw_p95:.1f})"
    )


async def measure(name: str, pool: Pool, raw_start: Act, raw_exec: Act) -> None:
    starts: tuple[list[float], list[float]] = ([], [])
    execs: tuple[list[float], list[float]] = ([], [])
    async with pool.connected():
        first = await timed(lambda: start_and_close(pool, []))
        for _ in range(NUM_STARTS):  # in turn, so that what else the machine does falls on both
            await start_and_close(pool, starts[0])
            starts[1].append(await timed(lambda: asyncio.to_thread(raw_start)))
        box = await pool.open(SandboxSpec(), "exec")
        for _ in range(NUM_EXECS):
            execs[0].append(await timed(lambda box=box: box.exec("true", 60)))
            execs[1].append(await timed(lambda: asyncio.to_thread(raw_exec)))
        await box.close()
        told(f"{name}, start", *starts)
        told(f"{name}, exec", *execs)
        print(f"{name}, the first of a pool: {first / median(starts[0]):.1f} x the others at p50 (ms: {first:.0f})")
        alone = await timed(lambda: episode(pool, 0))
        together = await timed(lambda: asyncio.gather(*(episode(pool, index) for index in range(NUM_EPISODES))))
        print(f"{name}, {NUM_EPISODES} episodes at once: {together / alone:.1f} x the time of one")


async def start_and_close(pool: Pool, starts: list[float]) -> None:
    began = time.perf_counter()
    box = await pool.open(SandboxSpec(), "start")
    starts.append((time.perf_counter() - began) * 1000)
    await box.close()


async def episode(pool: Pool, index: int) -> None:
    box = await pool.open(SandboxSpec(), f"episode-{index}")
    for turn in range(NUM_TURNS):
        done = await box.exec(f"echo {turn} >> log; wc -l < log", 60)
        assert done.output.strip() == str(turn + 1), done
    await box.close()


def main() -> None:
    limits = Limits(disk_mib=64)
    if "docker" not in sys.argv or "bubblewrap" in sys.argv:
        pool = BubblewrapSandboxes(run_id="bench", limits=limits, num_ready=0)
        raw = lambda: subprocess.run([*BWRAP, "sh", "-c", "true"], check=True)  # noqa: E731
        asyncio.run(measure("bubblewrap", pool, raw, raw))
    if "docker" in sys.argv:
        bench_docker(sys.argv[-1], limits)


def bench_docker(image: str, limits: Limits) -> None:
    import docker

    with closing(docker.from_env()) as client:
        made = []

        def start() -> None:
            made.append(client.containers.run(image, ["sleep", "600"], detach=True, network_mode="none"))

        start()
        pool = DockerSandboxes(run_id="bench", limits=limits, image=image, num_ready=0)
        try:
            asyncio.run(measure("docker", pool, start, lambda: made[0].exec_run(["sh", "-c", "true"])))
        finally:
            for container in made:
                container.remove(force=True)


if __name__ == "__main__":
    main()
