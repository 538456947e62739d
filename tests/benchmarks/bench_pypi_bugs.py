"""How fast are tasks of `pypi_bugs` made, and who solves them? python tests/benchmarks/bench_pypi_bugs.py [--tasks 200]

Prints tasks made per minute (bubblewrap, packages already fetched), and of agents that know the answer, do nothing,
and edit the tests, in both scaffolds: the share of tasks solved, and how long an episode takes beside one run of the
package's suite in a sandbox, both with the same number at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dagger_exp.envs.pypi_bugs.env import PypiBugsEnv
from dagger_exp.envs.pypi_bugs.packages import PackageCache, listed
from dagger_exp.envs.pypi_bugs.world import PypiBugs
from dagger_exp.protocols import Scaffold
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Message, StopReason, Task, ToolCall

HELDOUT_RATE = 0.25
SCAFFOLDS = {"bash": BashScaffold, "tools": ToolScaffold}
Agent = Callable[[PypiBugsEnv, Scaffold, int], Message]


def call(scaffold: Scaffold, command: str) -> Message:
    """Return a command, or a submission, in a scaffold's words."""
    if command == "submit" and scaffold.tools:
        return scaffold.write(ToolCall("finish", "{}"))
    return scaffold.write(ToolCall("execute_bash", json.dumps({"command": command})))


def teacher(env: PypiBugsEnv, scaffold: Scaffold, turn: int) -> Message:
    return env.expert_action()


def no_op(env: PypiBugsEnv, scaffold: Scaffold, turn: int) -> Message:
    return call(scaffold, "submit")


def editor_of_tests(env: PypiBugsEnv, scaffold: Scaffold, turn: int) -> Message:
    """Empty every test, and submit."""
    empty = "find . -name 'test*.py' -exec sh -c 'echo \"def test_all(): pass\" > \"$1\"' sh {} \\;"
    return call(scaffold, empty if turn == 0 else "submit")


async def play(world: PypiBugs, scaffold: Scaffold, agent: Agent, task: Task) -> tuple[bool, float]:
    """Return whether an agent solves a task, and how long it took."""
    env, begin = world.make(task), time.monotonic()
    try:
        await env.reset()
        reason, turn = None, 0
        while reason is None and turn < world.max_turns:
            reason = (await env.step(agent(env, scaffold, turn))).stop_reason
            turn += 1
        return reason is StopReason.SOLVED, time.monotonic() - begin
    finally:
        await env.close()


async def suite_time(world: PypiBugs, task: Task) -> float:
    """Return how long the suite of a task's package takes, sandbox included."""
    project, begin = world._cache.project(listed()[task.data["package"]]), time.monotonic()
    await world._suites().run(project.files, "benchmark")
    return time.monotonic() - begin


async def measure(world: PypiBugs, scaffold: Scaffold, tasks: Sequence[Task], concurrency: int) -> None:
    room = asyncio.Semaphore(concurrency)

    async def guarded(agent: Agent, task: Task) -> tuple[bool, float]:
        async with room:
            return await play(world, scaffold, agent, task)

    async def guarded_suite(task: Task) -> float:
        async with room:
            return await suite_time(world, task)

    async with world.connected():
        suite_s = statistics.mean(await asyncio.gather(*map(guarded_suite, tasks[:24])))
        for agent in (teacher, no_op, editor_of_tests):
            played = await asyncio.gather(*(guarded(agent, task) for task in tasks))
            mean_s = statistics.mean(seconds for _, seconds in played)
            missed = [task.id for task, (solved, _) in zip(tasks, played, strict=True) if not solved]
            print(
                f"{type(scaffold).__name__:13} {agent.__name__:16} solved {sum(solved for solved, _ in played)} of "
                f"{len(played)}; an episode takes {mean_s:.1f} s, {mean_s / suite_s:.1f} x its suite"
                f"{f'; not {missed}' if agent is teacher and missed else ''}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--concurrency", type=int, default=2, help="bugs tried, and episodes played, at once")
    parser.add_argument("--cache", type=Path, help="of an earlier run: nothing is made, and no rate printed")
    parser.add_argument("--scaffolds", nargs="+", choices=SCAFFOLDS, default=list(SCAFFOLDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache, num_heldout = options.cache or Path(folder), int(options.tasks * HELDOUT_RATE)
        sandboxes = BubblewrapSandboxes(run_id="benchmark", limits=Limits())
        packages = PackageCache(cache)
        packages.site()
        for package in listed().values():
            packages.project(package)
        begin = time.monotonic()
        for name in options.scaffolds:
            scaffold = SCAFFOLDS[name]()
            world = PypiBugs(
                cache_folder=cache,
                num_train_tasks=options.tasks - num_heldout,
                num_heldout_tasks=num_heldout,
                num_workers=options.concurrency,
                scaffold=scaffold,
                sandboxes=sandboxes,
            )
            tasks = [*world.tasks("train"), *world.tasks("heldout")]
            if name == options.scaffolds[0] and options.cache is None:
                minutes = (time.monotonic() - begin) / 60
                print(f"{len(tasks)} tasks made in {minutes:.1f} min: {len(tasks) / minutes:.1f} a minute", flush=True)
            asyncio.run(measure(world, scaffold, tasks, options.concurrency))


if __name__ == "__main__":
    main()
