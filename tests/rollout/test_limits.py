"""What ends a collection early or cuts it short: deadlines, the teacher's budget, long observations; and what hangs."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from dagger_exp.chat.conversation import Chat
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError, ContextError, DataError, EngineError
from dagger_exp.policies.llm import AnswerError, LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly, TeacherOnly, TurnMixture
from dagger_exp.protocols import Env, Mixing, Scores
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.goal import Goal
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.metrics import rollout_metrics
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.rollout.watchdog import Watchdog
from dagger_exp.scaffolds.observations import cut_middle
from dagger_exp.schedules import Constant
from dagger_exp.seeding import integer
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import byte_tokenizer, word_tokenizer
from dagger_exp.types import Episode, Key, Message, Response, State, StepResult, StopReason, Task, Usage

WORLD = RepoRepair(max_turns=3)
TOKENIZER: Any = word_tokenizer(WORLD.vocabulary())
CHAT = Chat(TOKENIZER)
ROUND_S = 3.0
"""Deadline of rounds that never end: all else is done long before it."""


@dataclass
class Slow:
    """A teacher far away: it says one command, costs ten tokens, and waits where it is told to."""

    hangs_at: Callable[[Key], bool] = lambda key: False
    failure: Exception | None = None
    asked: list[Key] = field(default_factory=list)
    id: str = "far away"
    reads_env: bool = False
    address: str = ""
    gate: asyncio.Event | None = None

    async def act(self, state: State, env: Env) -> Response:
        self.asked.append(state.key)
        if self.failure is not None:
            raise self.failure
        if self.hangs_at(state.key):
            await asyncio.Event().wait()
        if self.gate is not None:
            await self.gate.wait()
        return Response(Message("assistant", "test"), usage=Usage(8, 2))

    def connected(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def check(self) -> None:
        """Find nothing wrong."""


def runner(teacher: Slow, mixing: Mixing | None = None, world: Any = WORLD, **settings: Any) -> Runner:
    return Runner(
        world=world,
        student=LanguagePolicy(engine=ScriptedEngine(end_id=CHAT.end_id), chat=CHAT, max_new_tokens=8),
        teacher=teacher,
        mixing=mixing or TeacherOnly(),
        labeler=Labeler(),
        chat=CHAT,
        max_context_tokens=1000,
        **settings,
    )


def collected(
    runner: Runner, folder: Path, *, round_timeout_s: float | None = None, concurrency: int = 4, **goal: Any
) -> list[Episode]:
    collector = Collector(
        runner=runner,
        store=Store(folder, "run"),
        plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
        concurrency=concurrency,
        keeps=lambda round_index, reason: not reason.is_infrastructure,
        round_timeout_s=round_timeout_s,
    )
    return collector.collect(0, **goal)


def reasons(episodes: Sequence[Episode]) -> list[StopReason]:
    return [episode.stop_reason for episode in episodes]


def test_a_straggler_does_not_hold_a_round_beyond_its_deadline(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key.episode_index == 1)
    episodes = collected(runner(teacher), tmp_path, round_timeout_s=ROUND_S, num_episodes=6)
    assert reasons(episodes) == [StopReason.DEADLINE if i == 1 else StopReason.MAX_TURNS for i in range(6)]
    assert "deadline" in episodes[1].error
    assert rollout_metrics(episodes)["rollout/num_failed"] == 1


def test_a_round_that_was_cut_is_closed_with_what_it_has(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key.episode_index >= 5)
    episodes = collected(runner(teacher), tmp_path, round_timeout_s=ROUND_S, concurrency=2, num_labels=1000)
    assert reasons(episodes) == [StopReason.MAX_TURNS] * 5 + [StopReason.DEADLINE] * 2
    assert Store.open(tmp_path).is_closed(0)


def test_a_deadline_that_meets_the_time_out_of_episodes_ends_them_all(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key.episode_index > 0)
    played = runner(teacher, episode_timeout_s=ROUND_S, max_attempts=2)
    episodes = collected(played, tmp_path, round_timeout_s=ROUND_S, concurrency=32, num_episodes=32)
    assert reasons(episodes)[0] is StopReason.MAX_TURNS
    assert set(reasons(episodes)[1:]) <= {StopReason.DEADLINE, StopReason.TIMEOUT}


def test_a_deadline_closes_a_round_without_labels_too(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key.episode_index == 1)
    played = replace(runner(teacher), labeler=Labeler(turns="none"))
    episodes = collected(played, tmp_path, round_timeout_s=ROUND_S, concurrency=1, num_episodes=4)
    assert reasons(episodes) == [StopReason.MAX_TURNS, StopReason.DEADLINE]


def test_what_failures_cost_is_spent(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key.episode_index == 0 and key.turn_index == 2)
    played = runner(teacher, turn_timeout_s=0.5, max_attempts=2)
    collected(played, tmp_path, num_episodes=2)
    counts = Store.open(tmp_path).manifest(0)["counts"]
    assert counts["rollout/num_teacher_prompt_tokens"] == 8 * (2 + 2 + 3)


def test_an_answer_that_is_no_label_is_spent(tmp_path: Path) -> None:
    teacher = Slow(failure=AnswerError("was cut", Usage(8, 2)))
    played = runner(teacher, max_attempts=20, budget=TeacherBudget(tokens_per_round=70))
    assert reasons(collected(played, tmp_path, num_episodes=1)) == [StopReason.BUDGET]
    assert len(teacher.asked) == 7
    assert Store.open(tmp_path).manifest(0)["counts"]["rollout/num_teacher_prompt_tokens"] == 8 * 7


def test_a_resume_after_the_budget_is_spent_keeps_what_was_paid_for(tmp_path: Path) -> None:
    store, budget = Store(tmp_path, "run"), {"tokens_per_round": 90}
    hangs = Slow(hangs_at=lambda key: key.episode_index == 1 and key.turn_index == 1)
    played = runner(hangs, turn_timeout_s=0.5, budget=TeacherBudget(**budget))
    for index in range(4):  # as a run that was killed before it closed the round
        task = WORLD.tasks("train")[index]
        store.commit(asyncio.run(played.run(task, Key(0, 0, task.id, index))))
    episodes = collected(runner(Slow(), budget=TeacherBudget(**budget)), tmp_path, num_episodes=50)
    assert reasons(episodes)[:4] == [StopReason.MAX_TURNS, StopReason.TIMEOUT, StopReason.MAX_TURNS, StopReason.BUDGET]


@pytest.mark.parametrize("limit", ["budget", "deadline"])
def test_a_resume_after_a_limit_keeps_what_lies_behind_a_hole(tmp_path: Path, limit: str) -> None:
    store, played = Store(tmp_path, "run"), runner(Slow())
    for index in (0, 2, 3):  # 1 was playing when the run was killed
        task = WORLD.tasks("train")[index]
        store.commit(asyncio.run(played.run(task, Key(0, 0, task.id, index))))
    if limit == "budget":
        resumed = runner(Slow(), budget=TeacherBudget(tokens_per_round=90))
        episodes = collected(resumed, tmp_path, num_episodes=50)
        cut = StopReason.BUDGET
    else:
        resumed = runner(Slow(hangs_at=lambda key: True))
        episodes = collected(resumed, tmp_path, num_episodes=50, round_timeout_s=0.0)
        cut = StopReason.DEADLINE
    whole = StopReason.MAX_TURNS
    assert reasons(episodes) == [whole, cut, whole, whole]


def test_a_resume_remembers_what_failures_have_cost(tmp_path: Path) -> None:
    class Killed(Exception):  # noqa: N818 - it stands for a kill, not for an error
        pass

    def kill(episode: Episode) -> None:
        raise Killed

    def collect(teacher: Slow) -> None:
        budget = TeacherBudget(tokens_per_round=100)
        played = runner(teacher, turn_timeout_s=0.3, max_attempts=2, budget=budget)
        collected(played, tmp_path, concurrency=1, num_episodes=9, on_episode=kill)

    for _ in range(5):  # each time an episode fails twice for 10 tokens, and is played again by the next
        with pytest.raises(Killed):
            collect(Slow(hangs_at=lambda key: key.turn_index == 1))
    healthy = Slow()
    with pytest.raises(DataError, match=r"teacher_budget\.tokens_per_round is spent, and no episode of round 0"):
        collect(healthy)
    assert not healthy.asked
    assert not (tmp_path / "000" / "manifest.json").exists()


def test_what_was_paid_for_an_interrupted_batch_is_not_forgotten(tmp_path: Path) -> None:
    class Interrupted(BaseException):  # it stands for a signal
        pass

    class Late(Slow):
        async def act(self, state: State, env: Env) -> Response:
            if len(self.asked) == 6:
                raise Interrupted
            return await super().act(state, env)

    for _ in range(2):
        with pytest.raises(Interrupted):
            collected(runner(Late(), budget=TeacherBudget(tokens_per_round=150)), tmp_path, num_episodes=4)
    healthy = Slow()
    collected(runner(healthy, budget=TeacherBudget(tokens_per_round=150)), tmp_path, num_episodes=9)
    assert 10 * (len(healthy.asked) + 12) == pytest.approx(150, abs=30), "four at once may overdraw it once each"


def test_a_limit_is_refused_where_the_server_does_not_tell_what_counts(tmp_path: Path) -> None:
    class Silent(Slow):
        async def act(self, state: State, env: Env) -> Response:
            return replace(await super().act(state, env), usage=Usage())

    with pytest.raises(ConfigError, match="http://there does not tell how many tokens an answer has used"):
        collected(
            runner(Silent(address="http://there"), budget=TeacherBudget(cost_per_run=1.0)), tmp_path, num_episodes=1
        )
    assert collected(runner(Silent(address="http://there")), tmp_path, num_episodes=1)


def test_a_turn_that_takes_too_long_ends_its_episode_and_is_named(tmp_path: Path) -> None:
    teacher = Slow(hangs_at=lambda key: key == Key(0, 0, key.task_id, 0, 1))
    [first, second] = collected(runner(teacher, turn_timeout_s=0.5), tmp_path, num_episodes=2)
    assert (first.stop_reason, second.stop_reason) == (StopReason.TIMEOUT, StopReason.MAX_TURNS)
    assert "a turn took more than 0.5 s while it waited for the teacher far away" in first.error


@pytest.mark.parametrize(
    ("limit", "num_queries"),
    [({"tokens_per_round": 60}, 6), ({"cost_per_run": 0.5, "prompt_price": 1e4, "response_price": 1e4}, 5)],
)
def test_the_teacher_is_not_asked_beyond_its_budget(tmp_path: Path, limit: dict[str, Any], num_queries: int) -> None:
    teacher = Slow()
    episodes = collected(
        runner(teacher, budget=TeacherBudget(**limit), max_attempts=3), tmp_path, concurrency=1, num_episodes=50
    )
    assert len(teacher.asked) == num_queries
    assert reasons(episodes)[0] is StopReason.MAX_TURNS
    assert set(reasons(episodes)[1:]) <= {StopReason.MAX_TURNS, StopReason.BUDGET}
    metrics = Store.open(tmp_path).manifest(0)["counts"]
    spent = metrics["rollout/num_teacher_prompt_tokens"], metrics["rollout/num_teacher_response_tokens"]
    assert spent == (8 * num_queries, 2 * num_queries)


@pytest.mark.parametrize("goal", [{"num_labels": 60}, {"num_episodes": 20}])
def test_a_round_that_is_short_says_what_is_of_use_and_what_is_not(tmp_path: Path, goal: dict[str, int]) -> None:
    said: list[str] = []
    watchdog, budget = Watchdog(say=said.append), TeacherBudget(tokens_per_round=100)
    episodes = collected(runner(Slow(), budget=budget, watchdog=watchdog), tmp_path, **goal)
    held = [(not one.stop_reason.is_infrastructure, one.num_labels if "num_labels" in goal else 1) for one in episodes]
    got, rest = (sum(number for is_whole, number in held if is_whole is of_use) for of_use in (True, False))
    assert got > 0 < rest
    [(name, wanted)] = goal.items()
    unit = name.removeprefix("num_")
    words = f"{got} of {wanted} {unit}, and {rest} not trained on: teacher_budget.tokens_per_round is spent."
    assert said == [f"round 0 was closed with {words}"]


def test_a_round_says_which_limit_or_file_tells_why_it_is_short_and_nothing_where_it_is_full(tmp_path: Path) -> None:
    def said_of(folder: str, teacher: Slow, **settings: Any) -> list[str]:
        said: list[str] = []
        played = runner(teacher, watchdog=Watchdog(say=said.append), turn_timeout_s=settings.pop("turn_s", 60.0))
        collected(played, tmp_path / folder, num_episodes=3, **settings)
        return said

    hanging, begin = Slow(hangs_at=lambda key: key.episode_index == 1), "round 0 was closed with 2 of 3 episodes, and 1"
    assert said_of("full", Slow()) == []
    assert said_of("failed", hanging, turn_s=0.5) == [f"{begin} not trained on: see failures.csv."]
    cut = said_of("cut", hanging, round_timeout_s=ROUND_S)
    assert cut == [f"{begin} not trained on: rollout.round_timeout_s is over."]


def test_a_teacher_that_says_more_than_the_student_reads_is_named_as_the_reason(tmp_path: Path) -> None:
    class Talks(Slow):
        async def act(self, state: State, env: Env) -> Response:
            return Response(Message("assistant", "test " * 1000))

    with pytest.raises(DataError, match=r"100 of 100 episodes failed; .* raise student\.max_context_tokens"):
        collected(runner(Talks()), tmp_path, num_labels=1)


def test_a_budget_of_the_run_is_counted_over_its_rounds_and_refuses_the_next(tmp_path: Path) -> None:
    budget = TeacherBudget(tokens_per_run=30)
    collected(runner(Slow(), budget=budget), tmp_path, num_episodes=1)
    again = Collector(
        runner=runner(Slow(), budget=TeacherBudget(tokens_per_run=30)),
        store=Store(tmp_path, "run"),
        plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
        concurrency=1,
        keeps=lambda round_index, reason: True,
    )
    with pytest.raises(ConfigError, match=r"teacher_budget\.tokens_per_run is spent before round 1: raise it"):
        again.collect(1, num_episodes=1)


def test_the_label_is_asked_while_student_and_env_work(tmp_path: Path) -> None:
    gate = asyncio.Event()

    class Opens(RepoRepair):
        def make(self, task: Task) -> Any:
            env = super().make(task)
            step = env.step

            async def opening(action: Message) -> StepResult:
                gate.set()  # only now can the teacher's label come
                return await step(action)

            env.step = opening  # pyright: ignore[reportAttributeAccessIssue]
            return env

    teacher = Slow(gate=gate)
    played = runner(teacher, StudentOnly(), world=Opens(max_turns=2), turn_timeout_s=5)
    [episode] = collected(played, tmp_path, num_episodes=1)
    assert [turn.label_text for turn in episode.turns] == ["test", "test"]


def test_a_conversation_that_is_too_long_for_the_teacher_is_not_the_students_failure(tmp_path: Path) -> None:
    class Unscored(Slow):
        async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
            raise ContextError("512 tokens")

    acting, scoring = runner(Slow(failure=ContextError("512 tokens"))), runner(Unscored(), StudentOnly())
    for played in (acting, replace(scoring, labeler=Labeler(logprobs=True))):
        task = WORLD.tasks("train")[0]
        episode = asyncio.run(played.run(task, Key(0, 0, task.id, 0)))
        assert episode.stop_reason is StopReason.TEACHER
        assert "512 tokens" in episode.error


def test_a_teacher_that_gives_no_log_probabilities_is_refused_before_the_first_episode(tmp_path: Path) -> None:
    class Unscored(Slow):
        async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
            raise EngineError("a server of text")

    teacher = Unscored()
    played = replace(runner(teacher, StudentOnly()), labeler=Labeler(logprobs=True, num_top=50))
    with pytest.raises(ConfigError, match=r"a server of text\): serve it with vLLM and --max-logprobs 50"):
        collected(played, tmp_path, num_episodes=1)
    assert not teacher.asked


def test_scoring_is_spent_and_ends_with_the_budget(tmp_path: Path) -> None:
    class Scoring(Slow):
        async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
            return Scores([-1.0] * (len(token_ids) - 1), usage=Usage(50, 0))

    played = runner(Scoring(), StudentOnly(), budget=TeacherBudget(tokens_per_round=100))
    played = replace(played, labeler=Labeler(logprobs=True))
    episodes = collected(played, tmp_path, concurrency=1, num_episodes=3)
    assert reasons(episodes) == [StopReason.MAX_TURNS, StopReason.BUDGET]
    assert Store.open(tmp_path).manifest(0)["counts"]["rollout/num_teacher_prompt_tokens"] == 8 * 5 + 50


def test_long_observations_lose_their_middle_and_it_is_recorded(tmp_path: Path) -> None:
    class Tells(RepoRepair):
        def make(self, task: Task) -> Any:
            env = super().make(task)
            env.bugs = [replace(bug, symptom="s" * 40) for bug in env.bugs]
            return env

    played = replace(
        runner(Slow(), world=Tells(max_turns=3), max_observation_chars=4), chat=Chat(cast(Any, byte_tokenizer()))
    )  # a word that is cut is outside of any vocabulary of words
    [episode] = collected(played, tmp_path, num_episodes=1)
    first, later = episode.turns[0], episode.turns[1]
    assert first.num_cut_chars == 0  # the task is never cut
    assert later.num_cut_chars == len("fail " + "s" * 40) - 4
    assert f"[{later.num_cut_chars} characters left out]" in later.observation
    assert rollout_metrics([episode])["rollout/cut_rate"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("length", [50, 51])
def test_head_and_tail_are_kept(length: int) -> None:
    text = f"abc{'-' * (length - 5)}yz"
    cut, num_cut = cut_middle(text, 5)
    assert (cut.startswith("abc\n"), cut.endswith("\nyz"), num_cut) == (True, True, length - 5)
    assert cut_middle(text, length) == cut_middle(text, None) == (text, 0)


def test_no_cut_makes_an_observation_longer() -> None:
    assert cut_middle("fail s6", 5) == ("fail s6", 0)
    lengths = {length: len(cut_middle("x" * length, 5)[0]) for length in range(60)}
    assert all(cut <= length for length, cut in lengths.items())
    assert max(lengths.values()) < 40, "and none leaves it much longer than the limit"


def test_what_hangs_is_named_with_its_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said: list[str] = []
    teacher = Slow(hangs_at=lambda key: key.episode_index == 0 and key.turn_index == 1)
    watchdog = Watchdog(patience_s=0.5, say=said.append)
    with caplog.at_level(logging.WARNING):
        collected(runner(teacher, watchdog=watchdog), tmp_path, round_timeout_s=ROUND_S, num_episodes=2)
    said = [text for text in said if "episode 0 of round 0" in text]
    assert len(said) == 1  # once, and not again and again
    assert "turn 1" in said[0]
    assert "the teacher far away" in said[0]
    assert said[0] in caplog.text


class Blocking(Slow):
    """In episode 1 it never gives the event loop back while it thinks; meanwhile the others wait for it."""

    def __init__(self, freed: threading.Event) -> None:
        super().__init__(gate=asyncio.Event())
        self.freed = freed

    async def act(self, state: State, env: Env) -> Response:
        if state.key.episode_index == 1:
            assert self.freed.wait(60), "nobody has said that it blocks"
            cast(asyncio.Event, self.gate).set()
        return await super().act(state, env)


def test_what_blocks_the_event_loop_is_named_and_not_what_it_blocks(tmp_path: Path) -> None:
    said: list[str] = []
    freed = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        freed.set()

    collected(runner(Blocking(freed), watchdog=Watchdog(patience_s=0.5, say=say)), tmp_path, num_episodes=3)
    assert "episode 1 of round 0" in said[0]
    assert "the teacher far away" in said[0]


@dataclass
class Paced(Slow):
    """Answers each turn after as many passes of the event loop as its key says, so that episodes end out of order."""

    async def act(self, state: State, env: Env) -> Response:
        for _ in range(integer(state.key, "pace", 9)):
            await asyncio.sleep(0)
        return await super().act(state, env)


@pytest.mark.parametrize("concurrency", [8, 64])
def test_a_budget_of_labels_counts_what_is_playing_already(tmp_path: Path, concurrency: int) -> None:
    """Episodes that the round would drop are hardly begun: their answers cost money."""
    teacher = Paced()
    played = runner(teacher, TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1)), RepoRepair(max_turns=24))
    collector = Collector(
        runner=played,
        store=Store(tmp_path, "run"),
        plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
        concurrency=concurrency,
        keeps=EpisodeFilter(),
    )
    for round_index in range(2):
        before = len(teacher.asked)
        num_labels = sum(one.num_labels for one in collector.collect(round_index, num_labels=480))
        counts = collector.store.manifest(round_index)["counts"]
        assert counts["rollout/num_teacher_queries"] == len(teacher.asked) - before
        assert counts["rollout/num_labels"] == num_labels >= 480
        assert len(teacher.asked) - before <= 1.15 * num_labels


def test_labels_of_a_cut_episode_are_kept_and_it_is_not_played_again(tmp_path: Path) -> None:
    store, teacher = Store(tmp_path, "run"), Slow(hangs_at=lambda key: key.turn_index == 2)
    task = WORLD.tasks("train")[0]
    cut = asyncio.run(runner(teacher, turn_timeout_s=0.3).run(task, Key(0, 0, task.id, 0)))
    assert (cut.stop_reason, cut.num_labels) == (StopReason.TIMEOUT, 2)
    for keep_cut, num_labels in ((False, 6), (True, 5)):
        store.commit(cut)  # as a run that was killed before it closed the round
        collector = Collector(
            runner=runner(Slow()),
            store=store,
            plan=ShuffledTasks(tasks=WORLD.tasks("train"), seed=0),
            concurrency=1,
            keeps=EpisodeFilter(keep_cut=keep_cut),
        )
        goal = Goal(num_episodes=2, keeps=partial(collector.keeps, 0))
        assert sum(one.num_labels for one in collector.play(0, goal, lambda episode: None)) == num_labels
        store.discard(0, [0])
