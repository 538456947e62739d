"""Two packages of the list, fetched once, with a few real bugs made in real sandboxes."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from dagger_exp.envs.pypi_bugs.env import PypiBugsEnv
from dagger_exp.envs.pypi_bugs.world import PypiBugs
from dagger_exp.protocols import Scaffold
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.types import Message, StepResult, Task, ToolCall

PACKAGES = ("simpleeval", "webcolors")
NUM_TRAIN, NUM_HELDOUT = 4, 2
MakeWorld = Callable[..., PypiBugs]
Play = Callable[[PypiBugs, Task, Sequence[str]], Sequence[StepResult]]


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the packages and tasks, which one worker makes for all."""
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    folder = shared / "cache" / "pypi_bugs"
    with FileLock(shared / "cache.lock"):
        world = world_of(cache_folder=folder)
        for split in ("train", "heldout"):
            world.tasks(split)
    return folder


@pytest.fixture
def make_world(cache_folder: Path) -> MakeWorld:
    """Return what makes the world of the tests, with other values where they are given."""
    return partial(world_of, cache_folder=cache_folder)


def world_of(scaffold: Scaffold | None = None, **given: object) -> PypiBugs:
    """Return the world of the tests."""
    values = {"packages": PACKAGES, "num_train_tasks": NUM_TRAIN, "num_heldout_tasks": NUM_HELDOUT, **given}
    sandboxes = BubblewrapSandboxes(run_id="tests", limits=Limits())
    return PypiBugs(**values, scaffold=scaffold or BashScaffold(), sandboxes=sandboxes)  # pyright: ignore[reportArgumentType] - values of all kinds


def command(text: str) -> Message:
    """Return a command in the words of the bash scaffold."""
    return BashScaffold().write(ToolCall("execute_bash", json.dumps({"command": text})))


async def ask_teacher(env: PypiBugsEnv, max_turns: int = 12) -> StepResult:
    """Let the teacher play on until the end."""
    for _ in range(max_turns):
        result = await env.step(env.expert_action())
        if result.stop_reason is not None:
            return result
    raise AssertionError("the teacher does not end")


def played(world: PypiBugs, task: Task, commands: Sequence[str]) -> Sequence[StepResult]:
    """Return what came of some commands, one after the other; where they do not submit, the teacher goes on."""

    async def play() -> Sequence[StepResult]:
        async with world.connected():
            env = world.make(task)
            try:
                await env.reset()
                results = [await env.step(command(text)) for text in commands]
                return results if commands[-1:] == ["submit"] else [*results, await ask_teacher(env)]
            finally:
                await env.close()

    return asyncio.run(play())
