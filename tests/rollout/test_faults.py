"""Faults of the servers of teacher and student, one request in five: the round ends, and nothing is missing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.vllm import VllmEngine
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import DataError
from dagger_exp.evaluation.evaluator import Evaluator
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly, TurnMixture
from dagger_exp.policies.served import ServedPolicy
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import SameTasks, ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.schedules import Constant
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import word_tokenizer
from dagger_exp.types import Actor, Episode, Key, StopReason
from tests.provider import MODEL, Process, Provider, serving

WORLD = RepoRepair(max_turns=6)
TOKENIZER: Any = word_tokenizer(WORLD.vocabulary())
CHAT = Chat(TOKENIZER)
TEST_IDS = [*TOKENIZER.encode("test"), CHAT.end_id]
FAULTY = ("--fault-rate", "0.2", "--reply-ids", *map(str, TEST_IDS))


UNLOADED: Any = SimpleNamespace(lora_rank=None)
"""The server is there, and gets no weights."""


def runner(student: str | list[str], teacher: str, folder: Path) -> Runner:
    """Return a runner whose policies are both served, with little patience."""
    patience: dict[str, Any] = {"timeout_s": 1.0, "first_pause_s": 0.05, "max_attempts": 12}
    engine = VllmEngine(
        student=UNLOADED,
        end_id=CHAT.end_id,
        folder=folder,
        server=VllmServer(),
        addresses=[student] if isinstance(student, str) else student,
        endpoint=lambda address: Endpoint(address=address, **patience),
    )
    return Runner(
        world=WORLD,
        student=LanguagePolicy(engine=engine, chat=CHAT, max_new_tokens=8),
        teacher=ServedPolicy(endpoint=Endpoint(address=teacher, **patience), model=MODEL),
        mixing=TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1)),
        labeler=Labeler(),
        chat=CHAT,
        max_context_tokens=1000,
        episode_timeout_s=60,
    )


@pytest.mark.slow
@pytest.mark.parametrize("is_killed", [False, True])
def test_a_round_ends_with_every_label_whatever_the_servers_do(tmp_path: Path, is_killed: bool) -> None:
    ended: list[Episode] = []
    with Process(*FAULTY) as student, Process(*FAULTY) as teacher:

        def on_episode(episode: Episode) -> None:
            ended.append(episode)
            if is_killed and len(ended) == 3:
                teacher.restart()
            if is_killed and len(ended) == 6:
                student.restart()

        collector = Collector(
            runner=runner(student.address, teacher.address, tmp_path),
            store=Store(tmp_path / "rounds", "run"),
            plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
            concurrency=8,
            keeps=lambda round_index, reason: not reason.is_infrastructure,
        )
        episodes = collector.collect(0, num_episodes=24, on_episode=on_episode)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert {episode.stop_reason for episode in episodes} == {StopReason.MAX_TURNS}
    assert len(turns) == 24 * 6
    assert all(turn.label_text == "test" for turn in turns)
    assert {turn.actor for turn in turns} == {Actor.STUDENT, Actor.TEACHER}


def test_the_requests_of_an_episode_go_to_one_server_and_extend_each_other(tmp_path: Path) -> None:
    providers = [Provider(reply_ids=TEST_IDS), Provider(reply_ids=TEST_IDS)]
    with serving(providers[0]) as one, serving(providers[1]) as other:
        played = replace(runner([one, other], one, tmp_path), mixing=StudentOnly(), labeler=Labeler(turns="none"))
        collector = Collector(
            runner=played,
            store=Store(tmp_path / "rounds", "run"),
            plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
            concurrency=4,
            keeps=lambda round_index, reason: True,
        )
        episodes = collector.collect(0, num_episodes=8)
    for index, provider in enumerate(providers):
        asked = {tuple(body["prompt"]) for _, body, _ in provider.requests}
        own = [episode for episode in episodes if episode.episode_index % 2 == index]
        assert asked == {tuple(episode.prompt_ids(turn)) for episode in own for turn in range(len(episode.turns))}
        assert len({body["cache_salt"] for _, body, _ in provider.requests}) == 1


def test_a_server_that_stays_away_is_no_result_of_an_evaluation(tmp_path: Path) -> None:
    with Process(*FAULTY) as student, Process(*FAULTY) as teacher:
        played = runner(student.address, teacher.address, tmp_path)
        played.student.engine.endpoints[0].max_attempts = 2  # pyright: ignore[reportAttributeAccessIssue]
        student.process.kill()
        collector = Collector(
            runner=replace(played, mixing=StudentOnly(), labeler=Labeler(turns="none")),
            store=Store(tmp_path / "eval", "run"),
            plan=SameTasks(tasks=WORLD.tasks("heldout")[:4], seed=0),
            concurrency=4,
            keeps=lambda round_index, reason: False,
        )
        evaluator = Evaluator(name="eval", collector=collector)
        with pytest.raises(DataError, match=rf"^4 of 4 .* the last with .*{student.address}.*: fix that"):
            evaluator.evaluate(0)


@pytest.mark.parametrize(
    ("hangs", "name"), [("student", "the student's engine vllm"), ("teacher", f"the teacher {MODEL}")]
)
def test_a_server_that_hangs_is_named_with_its_address(tmp_path: Path, hangs: str, name: str) -> None:
    silent = Provider()
    silent.faults = ["timeout"] * 9
    with serving(silent) as hanging, serving(Provider(reply_ids=TEST_IDS)) as address:
        addresses = {"student": address, "teacher": address, hangs: hanging}
        played = replace(runner(**addresses, folder=tmp_path), turn_timeout_s=0.5, mixing=StudentOnly())

        async def play() -> Episode:
            async with played.connected():
                return await played.run(WORLD.tasks("train")[0], Key(0, 0, "t", 0))

        episode = asyncio.run(play())
    assert episode.stop_reason is StopReason.TIMEOUT
    assert episode.error.endswith(f"a turn took more than 0.5 s while it waited for {name} at {hanging}")
