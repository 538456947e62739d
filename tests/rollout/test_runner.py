"""One episode: its exact transcript, its tokens, and every way in which it may end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair, RepoRepairEnv
from dagger_exp.errors import ContextError, EngineError, EnvError, PolicyError
from dagger_exp.policies.llm import EmptyAnswer, LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly, SwitchMixture, TeacherOnly, TurnMixture
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Env, Generation, Sampling
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.runner import Runner
from dagger_exp.schedules import Constant, Ramp
from dagger_exp.training.tokenizers import word_tokenizer
from dagger_exp.types import Actor, Choice, Episode, Key, Message, Response, State, StepResult, StopReason, Task, Usage

S, T = Actor.STUDENT, Actor.TEACHER
TOKENIZER: Any = word_tokenizer(RepoRepair().vocabulary())
CHAT = Chat(TOKENIZER)
KEY = Key(5, 2, "t", 3)
TASK = Task("t", "train", {"files": ["f2", "f0", "f1"], "bugs": [("s1", "f0", "3")]})
ROOM = 8


def written(content: str) -> list[int]:
    """Return a text as the student would write it."""
    return CHAT.response_ids(Message("assistant", content), CHAT.open([Message("user", "test")]))


class Reciting(ScriptedEngine):
    """An engine of the test: says what it was given, turn by turn, and remembers what it was asked."""

    def __init__(self, *commands: str, is_cut: bool = False, failure: Exception | None = None) -> None:
        super().__init__(end_id=CHAT.end_id)
        self.commands, self.is_cut, self.failure = list(commands), is_cut, failure
        self.asked: dict[int, list[int]] = {}

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if self.failure is not None and not self.commands:
            raise self.failure
        assert sampling.key is not None
        self.asked[sampling.key.turn_index] = list(prompt_ids)
        ids = written(self.commands.pop(0))
        ids, reason = (ids[:-1], "length") if self.is_cut else (ids, "stop")
        return Generation(ids, [-0.5] * len(ids), reason, 4)


class Watched(ScriptedPolicy):
    """The world's teacher, which remembers the prompts it saw."""

    def __init__(self, failure: Exception | None = None) -> None:
        super().__init__()
        self.asked: dict[int, list[int]] = {}
        self.failure = failure

    async def act(self, state: State, env: Env) -> Response:
        if self.failure is not None:
            raise self.failure
        self.asked[state.key.turn_index] = list(state.prompt_ids)
        return await super().act(state, env)


@dataclass(frozen=True)
class Rota(StudentOnly):
    """A mixing whose actors are written down."""

    actors: Sequence[Actor] = ()

    def choose(self, key: Key) -> Choice:
        return Choice(self.actors[key.turn_index], beta=0.25, coin=key.turn_index / 100)


@dataclass
class FragileEnv(RepoRepairEnv):
    """Fails or hangs where it is told to, and counts how often it is closed."""

    fails_in: str = ""
    failure: Exception | None = None
    closed: list[str] = field(default_factory=list)

    async def reset(self) -> list[Message]:
        await self._reach("reset")
        return await super().reset()

    async def step(self, action: Message) -> StepResult:
        await self._reach("step")
        return await super().step(action)

    async def close(self) -> None:
        self.closed.append("closed")
        await self._reach("close")

    async def _reach(self, place: str) -> None:
        if place == self.fails_in:
            if self.failure is None:
                await asyncio.Event().wait()
            else:
                raise self.failure


class FragileWorld(RepoRepair):
    def __init__(self, fails_in: str = "", failure: Exception | None = None, max_turns: int = 24) -> None:
        super().__init__(max_turns=max_turns)
        self.fails_in, self.failure = fails_in, failure
        self.closed: list[str] = []

    def make(self, task: Task) -> RepoRepairEnv:
        if self.fails_in == "make" and self.failure is not None:
            raise self.failure
        env = super().make(task)
        return FragileEnv(
            env.files, env.lines, env.bugs, fails_in=self.fails_in, failure=self.failure, closed=self.closed
        )


def run(engine: ScriptedEngine | None = None, task: Task = TASK, key: Key = KEY, **changes: Any) -> Episode:
    """Return an episode; by default the student acts alone, says what `engine` says, and every turn is labelled."""
    parts: dict[str, Any] = {
        "world": RepoRepair(),
        "student": LanguagePolicy(engine=engine or Reciting(), chat=CHAT, max_new_tokens=ROOM),
        "teacher": ScriptedPolicy(),
        "mixing": StudentOnly(),
        "labeler": Labeler(),
        "chat": CHAT,
        "max_context_tokens": 1000,
    }
    return asyncio.run(Runner(**parts | changes).run(task, key))


def conversation_ids(episode: Episode, opening: str = "repo f2 f0 f1") -> list[int]:
    """Return the tokens of a whole conversation, rendered by the chat template at once."""
    rows = [{"role": "user", "content": opening}]
    for turn_index, turn in enumerate(episode.turns):
        rows += [{"role": "user", "content": turn.observation}] if turn_index else []
        rows.append({"role": "assistant", "content": turn.response_text})
    return CHAT.tokenizer.apply_chat_template(rows, tokenize=True, return_dict=False)


def recorded_ids(episode: Episode) -> list[int]:
    return [token for turn in episode.turns for token in (*turn.context_ids, *turn.response_ids)]


TRANSCRIPT = [
    (S, "repo f2 f0 f1", "test", "test"),
    (S, "fail s1", "open f1", "open f0"),
    (T, "f1 clean see f0", "open f0", "open f0"),
    (S, "f0 line 3", "edit f0 4", "edit f0 3"),
    (T, "ok", "revert f0", "revert f0"),
    (S, "ok", "open f1 f2", "edit f0 3"),
    (S, "err", "edit f0 3", "edit f0 3"),
    (T, "ok", "test", "test"),
    (S, "pass", "submit", "submit"),
]


def test_the_transcript_of_an_episode() -> None:
    engine, teacher = Reciting(*(said for actor, _, said, _ in TRANSCRIPT if actor is S)), Watched()
    episode = run(engine, teacher=teacher, mixing=Rota([row[0] for row in TRANSCRIPT]))
    assert [(t.actor, t.observation, t.response_text, t.label_text) for t in episode.turns] == TRANSCRIPT
    assert [t.turn_index for t in episode.turns] == list(range(9))
    assert [t.valid for t in episode.turns] == [True] * 5 + [False] + [True] * 3
    assert [t.reward for t in episode.turns] == [0.0] * 8 + [1.0]
    assert [t.coin for t in episode.turns] == [index / 100 for index in range(9)]
    assert {t.beta for t in episode.turns} == {0.25}
    assert episode.stop_reason is StopReason.SOLVED
    assert (episode.round_index, episode.episode_index, episode.task_id) == (2, 3, "t")
    assert (episode.teacher_id, episode.engine, episode.error) == ("scripted", "scripted", "")
    assert episode.chat_template_hash == CHAT.template.hash


def test_the_tokens_of_an_episode() -> None:
    engine, teacher = Reciting(*(said for actor, _, said, _ in TRANSCRIPT if actor is S)), Watched()
    episode = run(engine, teacher=teacher, mixing=Rota([row[0] for row in TRANSCRIPT]))
    assert recorded_ids(episode) == conversation_ids(episode)
    assert [turn.starts_branch for turn in episode.turns] == [True] + [False] * 8
    assert {**engine.asked, **teacher.asked} == {index: episode.prompt_ids(index) for index in range(9)}
    for turn in episode.turns:
        assert turn.label_text is not None
        assert turn.label_ids == written(turn.label_text)
        assert turn.sampling_logprobs == ([-0.5] * len(turn.response_ids) if turn.actor is S else ())
        assert turn.policy_version == (4 if turn.actor is S else 0)


def test_a_turn_records_how_the_student_sampled() -> None:
    engine = Reciting(*(said for actor, _, said, _ in TRANSCRIPT if actor is S))
    student = LanguagePolicy(engine=engine, chat=CHAT, max_new_tokens=ROOM, temperature=0.5, top_p=0.9)
    turns = run(student=student, mixing=Rota([row[0] for row in TRANSCRIPT])).turns
    assert [(t.temperature, t.top_p) for t in turns] == [
        (0.5, 0.9) if actor is S else (None, None) for actor, *_ in TRANSCRIPT
    ]


def test_hand_over_is_at_turn_boundaries() -> None:
    world = RepoRepair(max_turns=12)
    mixing = TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1))
    for index, task in enumerate(world.tasks("train")[:20]):
        key = Key(0, 0, task.id, index)
        mixed = run(ScriptedEngine(end_id=CHAT.end_id), task, key, world=world, mixing=mixing)
        assert [turn.actor for turn in mixed.turns] == [
            mixing.choose(key._replace(turn_index=turn.turn_index)).actor for turn in mixed.turns
        ]
        for turn in mixed.turns:
            state = State([], mixed.prompt_ids(turn.turn_index), key._replace(turn_index=turn.turn_index))
            sampling = Sampling(ROOM, key=state.key)
            babble = asyncio.run(ScriptedEngine(end_id=CHAT.end_id).generate(state.prompt_ids, sampling)).token_ids
            expected = babble if turn.actor is S else turn.label_ids
            assert turn.response_ids == expected


def test_an_episode_is_a_function_of_its_key() -> None:
    def played(key: Key) -> list[tuple[Any, ...]]:
        mixing = SwitchMixture(t_max=Ramp(start=4, step=0, cap=4))
        episode = run(ScriptedEngine(end_id=CHAT.end_id), key=key, mixing=mixing)
        return [(turn.actor, turn.kappa, turn.response_ids, turn.context_ids) for turn in episode.turns]

    assert played(KEY) == played(KEY)
    assert len({str(played(KEY._replace(episode_index=index))) for index in range(20)}) > 5


def test_a_response_that_was_cut_keeps_its_tokens_and_is_ended_by_the_next_context() -> None:
    episode = run(Reciting("test", "open f0", "submit", is_cut=True))
    for turn in episode.turns:
        assert turn.finish_reason == "length"
        assert CHAT.end_id not in turn.response_ids
        assert (turn.context_ids[0] == CHAT.end_id) == (turn.turn_index > 0)
    assert [*recorded_ids(episode), CHAT.end_id] == conversation_ids(episode)
    assert episode.stop_reason is StopReason.UNSOLVED


def test_a_prompt_without_room_for_a_response_ends_the_episode() -> None:
    whole = run(Reciting(*["test"] * 24))
    lengths = [len(whole.prompt_ids(turn_index)) for turn_index in range(24)]
    for limit in (lengths[5] + ROOM, lengths[6] + ROOM - 1):
        episode = run(Reciting(*["test"] * 24), max_context_tokens=limit)
        assert episode.stop_reason is StopReason.CONTEXT
        assert len(episode.turns) == 6
    assert run(max_context_tokens=lengths[0] + ROOM - 1).turns == []


class Rambling(Watched):
    """A teacher who says more at one turn."""

    rambles_at = 2

    async def act(self, state: State, env: Env) -> Response:
        response = await super().act(state, env)
        said = "test " * 20 if state.key.turn_index == self.rambles_at else response.message.content
        return replace(response, message=Message("assistant", said.strip()))


def test_a_label_that_does_not_fit_is_dropped_and_the_episode_goes_on() -> None:
    undisturbed = run(Reciting(*["test"] * 24))
    limit = len(undisturbed.prompt_ids(2)) + ROOM
    short = run(Reciting(*["test"] * 24), max_context_tokens=limit)
    episode = run(Reciting(*["test"] * 24), teacher=Rambling(), max_context_tokens=limit)
    assert (episode.stop_reason, len(episode.turns)) == (short.stop_reason, len(short.turns)) == (StopReason.CONTEXT, 3)
    assert [turn.label_ids is not None for turn in episode.turns] == [True, True, False]
    assert "longer than the student's context has room for" in episode.turns[2].label_error
    assert episode.turns[2].label_text is None


def test_an_action_of_the_teacher_that_does_not_fit_is_not_the_students_failure() -> None:
    undisturbed = run(mixing=TeacherOnly())
    limit = len(undisturbed.prompt_ids(2)) + ROOM
    episode = run(mixing=TeacherOnly(), teacher=Rambling(), max_context_tokens=limit)
    assert (episode.stop_reason, len(episode.turns), episode.num_labels) == (StopReason.TEACHER, 2, 2)
    assert episode.stop_reason.is_infrastructure
    assert len(run(mixing=TeacherOnly(), teacher=Rambling()).turns) > 3


def test_a_student_that_has_solved_its_task_needs_no_label_that_fits() -> None:
    solved = run(mixing=TeacherOnly())
    commands = [turn.response_text for turn in solved.turns]
    last = len(commands) - 1

    class Late(Rambling):
        rambles_at = last

    limit = len(solved.prompt_ids(last)) + ROOM
    episode = run(Reciting(*commands), teacher=Late(), max_context_tokens=limit)
    assert (episode.stop_reason, len(episode.turns)) == (solved.stop_reason, len(commands))
    assert episode.num_labels == last


def test_an_episode_ends_after_the_turns_of_the_world_or_of_the_mixing() -> None:
    world, cap, nothing = RepoRepair(max_turns=5), Ramp(start=0, step=3, cap=9), Ramp(start=0, step=0, cap=0)
    capped = SwitchMixture(t_max=nothing, max_turns=cap, teacher_first=True)
    for round_index, mixing, num_turns in [(0, StudentOnly(), 5), (1, capped, 3), (2, capped, 5)]:
        engine = Reciting(*["test"] * 9)
        episode = run(engine, key=KEY._replace(round_index=round_index), mixing=mixing, world=world)
        assert episode.stop_reason is StopReason.MAX_TURNS
        assert len(episode.turns) == num_turns


@pytest.mark.parametrize(
    ("fails_in", "failure", "reason", "num_closed"),
    [
        ("make", EnvError("no image"), StopReason.SANDBOX, 0),
        ("reset", EnvError("disk full"), StopReason.SANDBOX, 1),
        ("step", EnvError("killed"), StopReason.SANDBOX, 1),
        ("reset", None, StopReason.TIMEOUT, 1),
        ("step", None, StopReason.TIMEOUT, 1),
        ("close", EnvError("stuck"), StopReason.UNSOLVED, 1),
        ("", None, StopReason.UNSOLVED, 1),
    ],
)
def test_failures_of_an_env(fails_in: str, failure: Exception | None, reason: StopReason, num_closed: int) -> None:
    world = FragileWorld(fails_in, failure)
    episode = run(Reciting("submit"), world=world, episode_timeout_s=0.05 if failure is None and fails_in else 60)
    assert episode.stop_reason is reason
    assert len(world.closed) == num_closed
    assert len(episode.turns) == (0 if reason.is_infrastructure else 1)
    if reason is StopReason.SANDBOX:
        assert episode.error == f"EnvError: {failure}"


def test_an_env_that_cannot_be_closed_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        run(Reciting("submit"), world=FragileWorld("close", EnvError("stuck")))
    assert "stuck" in caplog.text


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"engine": Reciting("test", failure=EngineError("gone"))}, StopReason.ENGINE),
        ({"engine": Reciting("test", "test"), "teacher": Watched(EngineError("gone"))}, StopReason.TEACHER),
        ({"mixing": TeacherOnly(), "teacher": Watched(PolicyError("gone"))}, StopReason.TEACHER),
        ({"mixing": TeacherOnly(), "teacher": Watched(EngineError("gone"))}, StopReason.TEACHER),
    ],
    ids=["student", "label's engine", "teacher's turn", "teacher's engine"],
)
def test_failures_of_policies(parts: dict[str, Any], reason: StopReason) -> None:
    world = FragileWorld()
    episode = run(**parts, world=world)
    assert episode.stop_reason is reason
    assert episode.stop_reason.is_infrastructure
    assert "gone" in episode.error
    assert [turn.response_text for turn in episode.turns] == (["test"] if reason is StopReason.ENGINE else [])
    assert world.closed == ["closed"]


@pytest.mark.parametrize("place", ["make", "reset", "step", "close"])
@pytest.mark.parametrize("failure", [ZeroDivisionError("by zero"), TimeoutError("by zero"), MemoryError("by zero")])
def test_whatever_an_env_raises_is_its_episodes_failure_with_the_traceback(place: str, failure: Exception) -> None:
    world = FragileWorld(place, failure)
    episode = run(Reciting("submit"), world=world)
    if place == "close":
        assert episode.stop_reason is StopReason.UNSOLVED
        return
    assert episode.stop_reason is StopReason.SANDBOX
    sentence, _, trace = episode.error.partition("\n")
    assert sentence.endswith(f"raised {type(failure).__name__}: by zero")
    assert "raise self.failure" in trace
    assert world.closed == ([] if place == "make" else ["closed"])


@pytest.mark.parametrize("answer", [None, "ok", ("ok", 1.0), StepResult("ok")])  # pyright: ignore[reportArgumentType]
def test_an_env_that_answers_with_something_else_is_named(answer: Any) -> None:
    class WrongEnv(FragileEnv):
        async def step(self, action: Message) -> StepResult:
            return answer

    class WrongReset(FragileEnv):
        async def reset(self) -> list[Message]:
            return answer

    class Wrong(FragileWorld):
        kind: type[FragileEnv] = WrongEnv

        def make(self, task: Task) -> RepoRepairEnv:
            env = super().make(task)
            return self.kind(env.files, env.lines, env.bugs)

    world = Wrong()
    for world.kind, said in ((WrongEnv, "not a `StepResult`"), (WrongReset, "not a list of `Message`")):
        episode = run(Reciting("submit"), world=world)
        assert episode.stop_reason is StopReason.SANDBOX
        assert said in episode.error


@pytest.mark.parametrize("failure", [PolicyError("gone"), ContextError("gone"), KeyError("gone")])
def test_a_label_that_fails_leaves_its_turn_without_one(failure: Exception) -> None:
    class Sometimes(ScriptedPolicy):
        async def act(self, state: State, env: Env) -> Response:
            if state.key.turn_index % 2:
                raise failure
            return await super().act(state, env)

    expected, episode = (run(Reciting(*["test"] * 24), teacher=teacher) for teacher in (ScriptedPolicy(), Sometimes()))
    assert episode.stop_reason is expected.stop_reason
    for turn, whole in zip(episode.turns, expected.turns, strict=True):
        is_failed = turn.turn_index % 2 == 1
        assert turn.response_text == whole.response_text
        assert (turn.label_text, turn.label_ids) == ((None, None) if is_failed else (whole.label_text, whole.label_ids))
        assert ("gone" in turn.label_error) is is_failed
        assert "\n" not in turn.label_error
    assert (episode.num_labels, episode.num_label_errors) == (12, 12)


def test_where_the_teacher_was_to_act_its_failure_ends_the_episode_and_the_labels_before_it_stay() -> None:
    class Late(ScriptedPolicy):
        async def act(self, state: State, env: Env) -> Response:
            if state.key.turn_index == 2:
                raise PolicyError("gone")
            return await super().act(state, env)

    episode = run(mixing=TeacherOnly(), teacher=Late(), max_attempts=3)
    assert (episode.stop_reason, episode.num_labels) == (StopReason.TEACHER, 2)
    assert episode.stop_reason.is_cut


@pytest.mark.parametrize(("num_empty", "num_labels"), [(1, 3), (2, 2)])
def test_an_empty_answer_is_asked_again_once(num_empty: int, num_labels: int) -> None:
    class Hesitant(ScriptedPolicy):
        asked = 0

        async def act(self, state: State, env: Env) -> Response:
            if state.key.turn_index == 1 and self.asked < num_empty:
                self.asked += 1
                raise EmptyAnswer("the answer is empty", Usage(5, 1))
            return await super().act(state, env)

    budget = TeacherBudget()
    episode = run(Reciting("test", "test", "submit"), teacher=Hesitant(), budget=budget)
    assert episode.num_labels == num_labels
    assert budget.in_round == Usage(5 * num_empty, num_empty, num_queries=2 + num_empty + (num_empty == 1))


class Unheard(ScriptedPolicy):
    """A teacher that says a word which the student has no token for."""

    async def act(self, state: State, env: Env) -> Response:
        return Response(Message("assistant", "open flibber"))


def test_a_label_with_a_word_outside_the_students_vocabulary_is_none_and_the_word_is_named() -> None:
    episode = run(Reciting("test", "submit"), teacher=Unheard())
    assert [turn.label_ids for turn in episode.turns] == [None, None]
    assert {turn.label_error for turn in episode.turns} == {
        "the student's tokenizer does not know all words: 'flibber' of the teacher's answer."
    }
    assert episode.stop_reason is StopReason.UNSOLVED


def test_an_observation_with_a_word_outside_the_students_vocabulary_fails_and_the_word_is_named() -> None:
    task = replace(TASK, data={**TASK.data, "bugs": [("flibber", "f0", "3")]})
    episode = run(Reciting("test", "submit"), task=task)
    assert episode.stop_reason is StopReason.SANDBOX
    assert episode.error == "EnvError: the student's tokenizer does not know all words: 'flibber' of an observation."
    assert len(episode.turns) == 1


def test_an_unknown_token_that_the_student_says_itself_is_no_failure() -> None:
    episode = run(Reciting("flibber", "submit"))
    assert episode.stop_reason is StopReason.UNSOLVED
    assert TOKENIZER.unk_token_id in episode.turns[0].response_ids
