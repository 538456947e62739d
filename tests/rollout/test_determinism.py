"""What a round holds follows from the seed: not from concurrency, not from failures around it, not from a restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dagger_exp.config.build import build_run, build_training
from dagger_exp.config.composing import compose_checked
from dagger_exp.config.evaluators import build_evaluator
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair, RepoRepairEnv
from dagger_exp.errors import DataError, EngineError, EnvError, PolicyError
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Env, Generation, Sampling
from dagger_exp.rollout.collector import Collector
from dagger_exp.seeding import uniform
from dagger_exp.store.schema import TIME_COLUMNS
from dagger_exp.training.csv_logger import read_csv
from dagger_exp.training.progress import Silent
from dagger_exp.types import Message, Response, State, StepResult, StopReason, Task

SMALL = (
    "debug=default",
    "engine=scripted",
    "student.hidden_size=32",
    "student.num_layers=1",
    "evaluation.tasks=3",
    "rounds.steps=2",
)
HALF = ("schedule=constant", "schedule.start=0.5")
"""Student and teacher act by turns."""


def collector(folder: Path, *overrides: str) -> Collector:
    return build_run(compose_checked("train", [*SMALL, *overrides]), folder, "run").collector


def stored(used: Collector, round_index: int = 0) -> list[dict[str, Any]]:
    """Return the rows of a closed round without seconds."""
    return pq.read_table(used.store.parquet_path(round_index)).drop_columns(sorted(TIME_COLUMNS)).to_pylist()


class SlowEngine(ScriptedEngine):
    """The scripted engine, with answers in another order than that of the questions."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        for _ in range(hash(tuple(prompt_ids)) % 7):
            await asyncio.sleep(0)
        return await super().generate(prompt_ids, sampling)


def out_of_order(used: Collector) -> Collector:
    student = used.runner.student
    engine = SlowEngine(end_id=student.chat.end_id)
    return replace(used, runner=replace(used.runner, student=replace(student, engine=engine)))


@pytest.mark.parametrize("budget", [{"num_labels": 300}, {"num_episodes": 20}])
def test_concurrency_changes_nothing(tmp_path: Path, budget: dict[str, Any]) -> None:
    alone = collector(tmp_path / "1", *HALF, "rollout.concurrency=1")
    alone.collect(0, **budget)
    crowd = out_of_order(collector(tmp_path / "64", *HALF, "rollout.concurrency=64"))
    ended: list[int] = []
    crowd.collect(0, **budget, on_episode=lambda episode: ended.append(episode.episode_index))
    assert ended != sorted(ended), "the episodes did end in another order"
    assert stored(crowd) == stored(alone)
    assert {row["coin"] for row in stored(alone)} != {None}


def test_a_straggler_does_not_make_the_others_play_on(tmp_path: Path) -> None:
    used = out_of_order(collector(tmp_path, *HALF, "rollout.concurrency=4"))
    used.collect(0, num_labels=60)
    assert used.store.manifest(0)["num_dropped"] <= 4


class Distant:
    """A teacher, a world or the env of an episode: answers as the one it stands for, later, and breaks where told."""

    reads_env = False  # it is asked beside the student, and looks at once

    def __init__(self, near: Any, seconds: float, how: str = "") -> None:
        self.near, self.seconds, self.how, self.num_answers = near, seconds, how, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.near, name)

    def make(self, task: Task) -> Distant:
        self.how = self.how or task.id  # the first one breaks, at each attempt
        return Distant(
            self.near.make(task), self.seconds * (1 + int(task.id[-6:]) % 7), self.how * (task.id == self.how)
        )

    async def act(self, state: State, env: Any) -> Response:
        response = await self.near.act(state, env)
        await asyncio.sleep(self.seconds * uniform(state.key, "latency"))
        return response

    async def step(self, action: Message) -> StepResult:
        self.num_answers += 1
        await asyncio.sleep(self.seconds / self.num_answers)
        if self.how and self.num_answers == 3:
            raise EnvError("the disk is gone")
        return await self.near.step(action)


def rows_of_passes(run: Any) -> list[int]:
    """Return a list that gets the number of rows of each forward pass of the student."""
    seen: list[int] = []
    run.engine.load_weights(0, run.student.model)
    run.student.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return seen


def in_lock_step(folder: Path, seconds: float) -> tuple[list[dict[str, Any]], list[int]]:
    """Return a collection whose teacher and env take time, and the numbers of rows of its forward passes, sorted."""
    run = build_run(compose_checked("train", [*SMALL, *HALF, "engine=hf", "rollout.concurrency=8"]), folder, "run")
    seen, runner = rows_of_passes(run), run.collector.runner
    distant = replace(runner, teacher=Distant(runner.teacher, seconds), world=Distant(runner.world, seconds))
    used = replace(run.collector, runner=distant)
    used.collect(0, num_episodes=12)
    return stored(used), sorted(seen)


def test_latency_changes_nothing_in_lock_step(tmp_path: Path) -> None:
    at_once, later = in_lock_step(tmp_path / "0", 0.0), in_lock_step(tmp_path / "1", 0.003)
    assert later == at_once
    rows, _ = later
    lengths = {row["episode_index"]: row["turn_index"] for row in rows}
    assert len(set(lengths.values())) > 2, "episodes do end at different turns"
    assert {row["stop_reason"] for row in rows} > {"sandbox"}


def evaluated(folder: Path, seconds: float) -> tuple[list[list[Any]], list[int]]:
    """Return what the student says in an evaluation whose env takes time, and the rows of its passes, sorted."""
    choices = ["engine=hf", "evaluation.tasks=12", "evaluation.concurrency=5", "evaluation.temperature=1"]
    run = build_run(cfg := compose_checked("train", [*SMALL, *choices]), folder, "run")
    seen, evaluator = rows_of_passes(run), build_evaluator(cfg, run)
    runner = evaluator.collector.runner
    far = replace(evaluator.collector, runner=replace(runner, world=Distant(runner.world, seconds)))
    episodes = replace(evaluator, collector=far).evaluate(0)
    return [[turn.response_ids for turn in episode.turns] for episode in episodes], sorted(seen)


def test_latency_changes_no_pass_of_an_evaluation(tmp_path: Path) -> None:
    assert evaluated(tmp_path / "1", 0.003) == evaluated(tmp_path / "0", 0.0)


class FailingEnv(RepoRepairEnv):
    """Fails in the way that its task names; `hang` never answers."""

    how = ""

    async def step(self, action: Message) -> StepResult:
        if self.how == "env":
            raise EnvError("the disk is gone")
        if self.how == "hang":
            await asyncio.Event().wait()
        return await super().step(action)

    async def close(self) -> None:
        if self.how == "close":
            raise EnvError("a container is left")


class FailingWorld(RepoRepair):
    """Of every ten tasks one cannot be made, one breaks, one hangs and one cannot be closed."""

    attempts: list[str]

    def make(self, task: Task) -> RepoRepairEnv:
        self.attempts.append(task.id)
        env = super().make(task)
        env.__class__ = FailingEnv
        how = ("", "make", "env", "hang", "close", *[""] * 5)[int(task.id[-6:]) % 10]
        if how == "make":
            raise EnvError("no such image")
        env.how = how  # pyright: ignore[reportAttributeAccessIssue]
        return env


class BrokenEngine(ScriptedEngine):
    """Is down."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        raise EngineError("connection refused")


class BrokenTeacher(ScriptedPolicy):
    """Is down."""

    async def act(self, state: State, env: Env) -> Response:
        raise PolicyError("quota exceeded")


def failing(tmp_path: Path) -> tuple[Any, Any]:
    """Return the config and the parts of a run in whose world much fails."""
    cfg = compose_checked(
        "train",
        [
            *(*SMALL, *HALF, "rollout.episode_timeout_s=0.2", "rounds.num_rounds=1", "rounds.labels=300"),
            *("evaluation.tasks=1", "evaluation.validation_tasks=1"),  # which do not fail in this world
        ],
    )
    run = build_run(cfg, tmp_path, "run")
    world = FailingWorld()
    world.attempts = []
    return cfg, replace(run, collector=replace(run.collector, runner=replace(run.collector.runner, world=world)))


def test_failures_of_infrastructure_are_told_apart_and_never_counted(tmp_path: Path) -> None:
    cfg, run = failing(tmp_path)
    trainer, module, datamodule, rounds = build_training(cfg, run, "run", Silent())
    trainer.fit(module, datamodule=datamodule)
    store = run.collector.store
    episodes = store.read(0).episodes(range(store.manifest(0)["num_episodes"]))
    wanted = {1: StopReason.SANDBOX, 2: StopReason.SANDBOX, 3: StopReason.TIMEOUT}
    failed = [episode for episode in episodes if episode.stop_reason.is_infrastructure]
    assert {episode.stop_reason for episode in failed} == {StopReason.SANDBOX, StopReason.TIMEOUT}
    for episode in episodes:
        assert episode.stop_reason.is_infrastructure == (int(episode.task_id[-6:]) % 10 in wanted)
        assert episode.stop_reason == wanted.get(int(episode.task_id[-6:]) % 10, episode.stop_reason)
        assert run.collector.runner.world.attempts.count(episode.task_id) == 1 + episode.stop_reason.is_infrastructure

    counts = store.manifest(0)["counts"]
    counted = [episode for episode in episodes if episode not in failed]
    assert counts["rollout/num_failed"] == len(failed) > 0
    assert counts["rollout/success_rate"] == sum(e.solved for e in counted) / len(counted)
    trained = {index for step in range(50) for index in datamodule.loader(0).episode_indices(step)}
    assert trained == {episode.episode_index for episode in counted if episode.num_labels}

    rounds.finish(trainer, module)
    told = [
        (row["phase"], int(row["episode"]), row["stop_reason"], row["error"])
        for row in read_csv(tmp_path / "failures.csv")
    ]
    assert told == [("collect", e.episode_index, e.stop_reason.value, e.error) for e in failed]
    assert {error.partition(":")[0] for *_, error in told} == {"EnvError", "TimeoutError"}


def with_teacher(used: Collector) -> Collector:
    return replace(used, runner=replace(used.runner, teacher=BrokenTeacher()))


def with_engine(used: Collector) -> Collector:
    engine = BrokenEngine(end_id=0)
    return replace(used, runner=replace(used.runner, student=replace(used.runner.student, engine=engine)))


@pytest.mark.parametrize("choices", [("method=sft", "labeler.turns=all"), ("mixing=student", "schedule=none")])
@pytest.mark.parametrize(("broken", "reason"), [(with_teacher, StopReason.TEACHER), (with_engine, StopReason.ENGINE)])
def test_an_engine_or_a_teacher_that_is_down_is_named(
    tmp_path: Path, choices: tuple[str, str], broken: Callable[[Collector], Collector], reason: StopReason
) -> None:
    used = broken(collector(tmp_path, *choices))
    if reason is StopReason.TEACHER or "mixing=student" in choices:
        with pytest.raises(DataError, match=r"(3 of 3 episodes|labels) .* (quota exceeded|connection refused)"):
            used.collect(0, num_episodes=3)
        is_label = "mixing=student" in choices and reason is StopReason.TEACHER  # whose failure ends no episode
        assert is_label or {summary.stop_reason for summary in used.store.committed(0).values()} == {reason}
    else:
        assert not any(episode.stop_reason.is_infrastructure for episode in used.collect(0, num_episodes=3))


def test_what_an_outage_ended_is_played_again(tmp_path: Path) -> None:
    used = collector(tmp_path / "mended", *HALF)
    with pytest.raises(DataError, match="resume the run"):
        with_engine(used).collect(0, num_episodes=4)
    undisturbed = collector(tmp_path / "undisturbed", *HALF)
    for whole in (used, undisturbed):
        whole.collect(0, num_episodes=4)
    assert stored(used) == stored(undisturbed)


def test_a_collection_without_hope_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="quota exceeded"):
        with_teacher(collector(tmp_path / "failing")).collect(0, num_labels=10)
    with pytest.raises(DataError, match="no label that is trained on"):
        collector(tmp_path / "filtered", "mixing=student", "schedule=none", "filter.keep=solved").collect(
            0, num_labels=10
        )


@pytest.mark.kill
@pytest.mark.parametrize("phase", ["collect", "train"])
def test_ctrl_c_ends_a_run_in_order(tmp_path: Path, phase: str) -> None:
    choices = [*SMALL, "rounds.labels=400", "rounds.steps=5000", f"hydra.run.dir={tmp_path}/run"]
    command = [sys.executable, "-m", "dagger_exp.cli.train", *choices, "engine=hf"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        said = ""
        while not re.search(rf"round 1/2 +{phase}", said):
            said += (line := process.stdout.readline())
            assert line, said
        os.killpg(process.pid, signal.SIGINT)
        said += process.stdout.read()
    assert process.returncode == 130, said
    assert f"dagger-train resume={tmp_path}/run" in said
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "interrupted"
    assert not list(tmp_path.rglob("*.tmp"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
