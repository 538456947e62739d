"""Labels: the teacher's word at visited states, and what it costs in queries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError, PolicyError
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import TurnMixture
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Env
from dagger_exp.rollout.budget import usage_of
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.runner import Runner
from dagger_exp.schedules import Constant
from dagger_exp.training.tokenizers import word_tokenizer
from dagger_exp.types import Actor, Episode, Key, Message, Response, State, StopReason

WORLD = RepoRepair(max_turns=10)
TOKENIZER: Any = word_tokenizer(WORLD.vocabulary())
CHAT = Chat(TOKENIZER)


class Counting(ScriptedPolicy):
    """The world's teacher; counts its queries and remembers its answers by turn."""

    def __init__(self, error_rate: float = 0.0) -> None:
        super().__init__(error_rate=error_rate)
        self.answers: list[tuple[Key, str]] = []

    async def act(self, state: State, env: Env) -> Response:
        response = await super().act(state, env)
        self.answers.append((state.key, response.message.content))
        return response


class Failing(ScriptedPolicy):
    async def act(self, state: State, env: Env) -> Response:
        raise PolicyError("rate limit")


def play(labeler: Labeler, teacher: ScriptedPolicy, num_episodes: int = 10) -> list[Episode]:
    """Return episodes in which student and teacher act in turn, by a coin."""
    runner = Runner(
        world=WORLD,
        student=LanguagePolicy(engine=ScriptedEngine(end_id=CHAT.end_id), chat=CHAT, max_new_tokens=8),
        teacher=teacher,
        mixing=TurnMixture(schedule=Constant(start=0.4, end=0.4, num_rounds=1)),
        labeler=labeler,
        chat=CHAT,
        max_context_tokens=1000,
    )
    tasks = WORLD.tasks("train")[:num_episodes]
    return [asyncio.run(runner.run(task, Key(0, 0, task.id, index))) for index, task in enumerate(tasks)]


@pytest.mark.parametrize("error_rate", [0.0, 0.5])
def test_labels_are_the_teachers_and_its_own_turns_cost_no_second_query(error_rate: float) -> None:
    teacher = Counting(error_rate)
    episodes = play(Labeler(), teacher)
    turns = [turn for episode in episodes for turn in episode.turns]
    assert len({turn.actor for turn in turns}) == 2
    assert [answer for _, answer in teacher.answers] == [turn.label_text for turn in turns]
    assert len({key for key, _ in teacher.answers}) == len(turns)
    for turn in turns:
        written = CHAT.response_ids(Message("assistant", turn.label_text or ""), CHAT.open([Message("user", "test")]))
        assert turn.label_ids == written
        if turn.actor is Actor.TEACHER:
            assert (turn.label_text, turn.label_ids) == (turn.response_text, turn.response_ids)
    assert usage_of(episodes).num_queries == len(teacher.answers)


@pytest.mark.parametrize(
    ("turns", "labelled"),
    [
        ("all", {Actor.STUDENT, Actor.TEACHER}),
        ("student", {Actor.STUDENT}),
        ("teacher", {Actor.TEACHER}),
        ("none", set()),
    ],
)
def test_which_turns_are_labelled(turns: str, labelled: set[Actor]) -> None:
    teacher = Counting()
    episodes = play(Labeler(turns=turns), teacher)
    num_queries = 0
    for turn in (turn for episode in episodes for turn in episode.turns):
        assert (turn.label_ids is not None) == (turn.label_text is not None) == (turn.actor in labelled)
        num_queries += turn.actor is Actor.TEACHER or turn.actor in labelled
    assert len(teacher.answers) == num_queries
    assert sum(episode.num_labels for episode in episodes) == rollout_metrics(episodes)["rollout/num_labels"]


def test_labels_do_not_change_what_is_visited() -> None:
    def visited(turns: str) -> list[list[tuple[Actor, str, str]]]:
        episodes = play(Labeler(turns=turns), ScriptedPolicy())
        return [[(turn.actor, turn.observation, turn.response_text) for turn in e.turns] for e in episodes]

    assert visited("all") == visited("none") == visited("student")


def test_a_teacher_that_fails_to_act_is_named() -> None:
    [episode] = play(Labeler(turns="none"), Failing(id="far away"), num_episodes=1)
    assert episode.stop_reason is StopReason.TEACHER
    assert "'far away'" in episode.error
    assert "rate limit" in episode.error


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"labeler\.turns.*all, student, teacher, none"):
        Labeler(turns="some")
