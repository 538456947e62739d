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
from dagger_exp.evaluation.metrics import check_rate, evaluation_metrics, has_rate
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Engine, Generation, Sampling
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import SameTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.store.schema import TIME_COLUMNS, to_table
from dagger_exp.store.store import Store
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
    parts: dict[str, Any] = {"tasks": WORLD.tasks("heldout"), "seed": 1000, "concurrency": 4} | changes
    collector = Collector(
        runner=runner,
        store=Store(folder, "run"),
        plan=SameTasks(tasks=parts["tasks"], seed=parts["seed"]),
        concurrency=parts["concurrency"],
        keeps=lambda round_index, reason: False,
    )
    return Evaluator(name="eval", collector=collector)


def without_times(episodes: Sequence[Episode]) -> list[Episode]:
    return [
        replace(episode, wall_time_s=0.0, turns=[replace(turn, wall_time_s=0.0) for turn in episode.turns])
        for episode in episodes
    ]


def recorded(episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """Return the rows of episodes as a store keeps them, without times."""
    return to_table("run", episodes).drop_columns(list(TIME_COLUMNS)).to_pylist()


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
    assert (tmp_path / "eval" / "003" / "episodes.parquet").exists()
    watched: list[Episode] = []
    again = make_evaluator(tmp_path / "eval", Failing(end_id=CHAT.end_id)).evaluate(3, watched.append)
    assert to_table("run", again) == to_table("run", first)
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
    with pytest.raises(DataError, match=r"^12 of 12 evaluation .* with EngineError: gone: fix that and resume"):
        make_evaluator(tmp_path, Failing(end_id=CHAT.end_id)).evaluate(0)
    assert not (tmp_path / "000" / "manifest.json").exists()
    episodes = make_evaluator(tmp_path).evaluate(0)
    assert not any(episode.stop_reason.is_infrastructure for episode in episodes)
    assert "eval/success_rate" in evaluation_metrics(episodes)


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_evaluation_that_was_ended_goes_on_where_it_was(tmp_path: Path, concurrency: int) -> None:
    choices: dict[str, Any] = {"tasks": RepoRepair(max_turns=6).tasks("heldout")[:50], "concurrency": concurrency}
    before: list[Episode] = []

    def end_after_40(episode: Episode) -> None:
        before.append(episode)
        if len(before) == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_evaluator(tmp_path / "cut", **choices).evaluate(2, end_after_40)
    on_disk = Store.open(tmp_path / "cut").committed(2)
    assert 40 <= len(on_disk) < 40 + concurrency
    again = make_evaluator(tmp_path / "cut", **choices)
    assert again.num_done(2) == len(on_disk)
    played: list[Episode] = []
    episodes = again.evaluate(2, played.append)
    assert {episode.episode_index for episode in played} == set(range(50)) - set(on_disk)
    assert recorded(episodes) == recorded(make_evaluator(tmp_path / "whole", **choices).evaluate(2))
    assert Store.open(tmp_path / "cut").is_closed(2)


def test_a_batch_in_lock_step_that_was_ended_is_played_again_whole(tmp_path: Path) -> None:
    played: list[Episode] = []

    def end_at_once(episode: Episode) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_evaluator(tmp_path / "cut", hf_engine()).evaluate(0, end_at_once)
    assert len(Store.open(tmp_path / "cut").committed(0)) == 4
    episodes = make_evaluator(tmp_path / "cut", hf_engine()).evaluate(0, played.append)
    assert [episode.episode_index for episode in played] == list(range(4, 12))
    assert recorded(episodes) == recorded(make_evaluator(tmp_path / "whole", hf_engine()).evaluate(0))


def test_an_evaluation_with_too_many_failures_stays_open_and_plays_them_again(tmp_path: Path) -> None:
    episodes = make_evaluator(tmp_path, FailsOne(end_id=CHAT.end_id)).evaluate(0)
    metrics = evaluation_metrics(episodes)
    assert metrics["eval/num_failed"] == 1
    assert not has_rate(metrics, "eval")
    with pytest.raises(DataError, match=r"^1 of 12 eval episodes failed .* resume the run; only they are played again"):
        check_rate(metrics, "eval")
    assert not Store.open(tmp_path).is_closed(0)
    played: list[Episode] = []
    episodes = make_evaluator(tmp_path).evaluate(0, played.append)
    assert [episode.episode_index for episode in played] == [7]
    assert recorded(episodes) == recorded(make_evaluator(tmp_path / "whole").evaluate(0))
    check_rate(Store.open(tmp_path).manifest(0)["counts"], "eval")


def test_a_single_failure_among_many_is_recorded_and_in_no_rate(tmp_path: Path) -> None:
    tasks = [*WORLD.tasks("heldout")] * 5
    engine = FailsOne(end_id=CHAT.end_id)
    episodes = make_evaluator(tmp_path, engine, tasks=tasks).evaluate(0)
    assert [episode.stop_reason for episode in episodes].count(StopReason.ENGINE) == 1
    assert evaluation_metrics(episodes)["eval/num_failed"] == 1
    assert "eval/success_rate" in evaluation_metrics(episodes)
