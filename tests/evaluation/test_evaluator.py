"""The evaluation: fixed tasks, fixed coins, played once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dagger_exp.engines.hf import HfEngine
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import DataError, EngineError
from dagger_exp.evaluation.evaluator import Evaluator
from dagger_exp.evaluation.metrics import evaluation_metrics
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Engine, Generation, Sampling
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.runner import Runner
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Actor, Episode, StopReason

torch.set_num_threads(1)
WORLD = RepoRepair(max_turns=6, num_heldout_tasks=12)
STUDENT = from_scratch(
    vocabulary=WORLD.vocabulary(),
    tokenizer="words",
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    max_context_tokens=200,
    seed=0,
)
CHAT = STUDENT.chat


class Failing(ScriptedEngine):
    """An engine that is gone."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        raise EngineError("gone")


class FailsOne(ScriptedEngine):
    """An engine that never answers one episode."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if sampling.key is not None and sampling.key.episode_index == 7:
            raise EngineError("gone")
        return await super().generate(prompt_ids, sampling)


def hf_engine() -> HfEngine:
    engine = HfEngine(end_id=CHAT.end_id, pad_id=STUDENT.tokenizer.pad_token_id)
    engine.load_weights(1, STUDENT.model)
    return engine


def make_evaluator(folder: Path, engine: Engine | None = None, **changes: Any) -> Evaluator:
    student = LanguagePolicy(engine=engine or ScriptedEngine(end_id=CHAT.end_id), chat=CHAT, max_new_tokens=4)
    runner = Runner(
        world=WORLD,
        student=student,
        teacher=ScriptedPolicy(),
        mixing=StudentOnly(),
        labeler=Labeler(turns="none"),
        chat=CHAT,
        max_context_tokens=200,
    )
    parts: dict[str, Any] = {"tasks": WORLD.tasks("heldout"), "seed": 1000, "concurrency": 4, "run_id": "run"}
    return Evaluator(runner=runner, folder=folder, **parts | changes)


def without_times(episodes: Sequence[Episode]) -> list[Episode]:
    return [
        replace(episode, wall_time_s=0.0, turns=[replace(turn, wall_time_s=0.0) for turn in episode.turns])
        for episode in episodes
    ]


def spoken(episodes: Sequence[Episode]) -> list[list[tuple[int, ...]]]:
    return [[tuple(turn.response_ids) for turn in episode.turns] for episode in episodes]


def test_the_student_plays_every_task_once_and_alone(tmp_path: Path) -> None:
    watched: list[Episode] = []
    episodes = make_evaluator(tmp_path).evaluate(0, watched.append)
    assert [episode.task_id for episode in episodes] == [task.id for task in WORLD.tasks("heldout")]
    assert [episode.episode_index for episode in episodes] == list(range(12))
    assert {turn.actor for episode in episodes for turn in episode.turns} == {Actor.STUDENT}
    assert sum(episode.num_labels for episode in episodes) == 0
    assert sorted(episode.task_id for episode in watched) == [episode.task_id for episode in episodes]


def test_a_second_evaluation_is_read_from_disk(tmp_path: Path) -> None:
    first = make_evaluator(tmp_path / "eval").evaluate(3)
    assert [path.name for path in (tmp_path / "eval").iterdir()] == ["round_003.parquet"]
    watched: list[Episode] = []
    again = make_evaluator(tmp_path / "eval", Failing(end_id=CHAT.end_id)).evaluate(3, watched.append)
    assert again == first
    assert watched == []
    assert evaluation_metrics(again) == evaluation_metrics(first)


@pytest.mark.parametrize("make_engine", [hf_engine, lambda: ScriptedEngine(end_id=CHAT.end_id)], ids=["hf", "scripted"])
def test_the_same_tasks_meet_the_same_coins_after_every_round(tmp_path: Path, make_engine: Any) -> None:
    rounds = [make_evaluator(tmp_path, make_engine()).evaluate(round_index) for round_index in (0, 1, 7)]
    assert [{episode.round_index for episode in episodes} for episodes in rounds] == [{0}, {1}, {7}]
    first, *later = ([replace(episode, round_index=0) for episode in without_times(played)] for played in rounds)
    assert later == [first, first]
    assert len({str(episode) for episode in spoken(rounds[0])}) > 1
    other = make_evaluator(tmp_path / "other", make_engine(), seed=1001).evaluate(0)
    assert spoken(other) != spoken(rounds[0])


def test_concurrency_changes_nothing(tmp_path: Path) -> None:
    found = [make_evaluator(tmp_path / str(n), concurrency=n).evaluate(0) for n in (1, 5, 50)]
    assert without_times(found[0]) == without_times(found[1]) == without_times(found[2])


def test_an_outage_is_no_result_and_is_played_again_when_it_is_over(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^12 of 12 evaluation .* with EngineError: gone: mend that and resume"):
        make_evaluator(tmp_path, Failing(end_id=CHAT.end_id)).evaluate(0)
    assert not list(tmp_path.iterdir())
    episodes = make_evaluator(tmp_path).evaluate(0)
    assert not any(episode.stop_reason.is_infrastructure for episode in episodes)
    assert "eval/success_rate" in evaluation_metrics(episodes)


def test_a_single_failure_among_many_is_recorded_and_in_no_rate(tmp_path: Path) -> None:
    tasks = [*WORLD.tasks("heldout")] * 5
    engine = FailsOne(end_id=CHAT.end_id)
    episodes = make_evaluator(tmp_path, engine, tasks=tasks).evaluate(0)
    assert [episode.stop_reason for episode in episodes].count(StopReason.ENGINE) == 1
    assert evaluation_metrics(episodes)["eval/num_failed"] == 1
    assert "eval/success_rate" in evaluation_metrics(episodes)


def test_nothing_to_evaluate_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="heldout"):
        make_evaluator(tmp_path, tasks=[]).evaluate(0)
    assert not list(tmp_path.iterdir())
