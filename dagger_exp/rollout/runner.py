"""One episode: the rollout of the paper's algorithm.

s_0 = reset
for t = 0, 1, ...:
    actor ~ mixture            who acts at this turn
    a_t   ~ actor(s_t)         the action that is executed
    l_t   = teacher(s_t)       the label, whoever acted
    s_t+1 = step(a_t)

The label depends on the state alone, so a served teacher is asked for it while student and environment work. What is
valid or not is the pair of state and label: a label that fails leaves its turn without one, and the episode goes on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from dagger_exp.chat.conversation import Chat, Prompt
from dagger_exp.errors import (
    DaggerError,
    EngineError,
    EnvError,
    LabelError,
    PolicyError,
    TeacherError,
    boundary,
)
from dagger_exp.policies.llm import AnswerError, EmptyAnswer, LanguagePolicy
from dagger_exp.protocols import Env, Mixing, Policy, Scorer, World
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.scored import scored
from dagger_exp.rollout.turns import Said, Taken, check_words, checked, opening, record, stop_reason_of
from dagger_exp.rollout.watchdog import Watchdog, with_address
from dagger_exp.scaffolds.observations import cut_middle
from dagger_exp.types import (
    Actor,
    Episode,
    Key,
    Response,
    State,
    StepResult,
    StopReason,
    Task,
    Turn,
)

CLOSE_TIMEOUT_S = 60.0
"""Longest time that an env may take to free what it holds."""
FINAL = (StopReason.DEADLINE, StopReason.BUDGET)
"""Failures that another attempt would only repeat."""
T = TypeVar("T")
U = TypeVar("U")


def is_sound(episode: Episode) -> bool:
    """Return whether the model itself ended the episode."""
    return not episode.stop_reason.is_infrastructure


@dataclass(frozen=True, kw_only=True)
class Runner:
    """Plays episodes.

    Args:
        world: makes the envs.
        student: policy of `Actor.STUDENT`.
        teacher: policy of `Actor.TEACHER`, also asked for the labels.
        mixing: decides who acts.
        labeler: decides which turns are labelled.
        chat: renders prompts in the student's format.
        max_context_tokens: that a prompt and what is said to it may have; more ends the episode.
        max_observation_chars: longer observations lose their middle; None keeps them whole.
        turn_timeout_s: wall-clock limit of a turn.
        episode_timeout_s: wall-clock limit of an attempt.
        max_attempts: how often an episode is tried that fails for reasons of infrastructure.
        budget: of the teacher.
        watchdog: is told what each turn waits for.
    """

    world: World
    student: LanguagePolicy
    teacher: Policy
    mixing: Mixing
    labeler: Labeler
    chat: Chat
    max_context_tokens: int
    max_observation_chars: int | None = None
    turn_timeout_s: float = 3600.0
    episode_timeout_s: float = 3600.0
    max_attempts: int = 1
    budget: TeacherBudget = field(default_factory=TeacherBudget)
    watchdog: Watchdog = field(default_factory=Watchdog)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Hold what both policies need while episodes are played."""
        async with self.student.connected(), self.teacher.connected(), self.world.connected():
            with self.watchdog.watching():
                yield

    async def run(
        self, task: Task, key: Key, deadline: float = math.inf, is_useful: Callable[[Episode], bool] = is_sound
    ) -> Episode:
        """Play one episode, and again with the same coins where an attempt is of no use; the last attempt counts.

        A failure of infrastructure ends an episode with its own reason; it is never raised.

        Args:
            task: the task to play.
            key: of the episode.
            deadline: on the monotonic clock, at which a straggler is cut.
            is_useful: whether an attempt is worth keeping.
        """
        episode = await self._attempt(task, key, deadline)
        for _ in range(self.max_attempts - 1):
            if is_useful(episode) or episode.stop_reason in FINAL:
                break
            episode = await self._attempt(task, key, deadline)
        return episode

    async def _attempt(self, task: Task, key: Key, deadline: float) -> Episode:
        begin, turns, error = time.monotonic(), list[Turn](), ""
        self.watchdog.cut(key)  # of another attempt
        env: Env | None = None
        try:
            with boundary(EnvError, "the making of the env"):
                env = self.world.make(task)
            async with asyncio.timeout_at(min(deadline, begin + self.episode_timeout_s)):
                stop_reason = await self._play(env, key, turns)
                turns = await self._scored(key, turns)
        except TimeoutError:
            stop_reason = StopReason.DEADLINE if (is_cut := time.monotonic() >= deadline) else StopReason.TIMEOUT
            limit = "the round's deadline cut this episode" if is_cut else self._too_long(begin)
            error = limit + self.watchdog.cut(key)
        except (EnvError, LabelError, PolicyError, TeacherError) as failure:
            stop_reason, error = stop_reason_of(failure), f"{type(failure).__name__}: {failure}"
        finally:
            await _close(env)
        return Episode(
            round_index=key.round_index,
            episode_index=key.episode_index,
            task_id=task.id,
            stop_reason=stop_reason,
            turns=turns,
            teacher_id=self.teacher.id,
            engine=self.student.engine.id,
            chat_template_hash=self.chat.template.hash,
            error=error,
            wall_time_s=time.monotonic() - begin,
        )

    async def _play(self, env: Env, key: Key, turns: list[Turn]) -> StopReason:
        with self._waiting(key, "the reset of the env", EnvError):
            messages = opening(await env.reset())
        observation, num_cut = "\n".join(message.content for message in messages), 0
        prompt = self.chat.open(messages)
        for turn_index in range(self.max_turns(key.round_index)):
            if turns:
                prompt = self.chat.extend(prompt, turns[-1].response_ids, messages)
            check_words(self.chat, prompt.context_ids, observation, "an observation", EnvError)
            if len(prompt.prompt_ids) + self.student.max_new_tokens > self.max_context_tokens:
                return StopReason.CONTEXT
            begin = time.monotonic()
            state = State(tuple(messages), prompt.prompt_ids, key._replace(turn_index=turn_index))
            choice = self.mixing.choose(state.key)
            async with asyncio.timeout(self.turn_timeout_s):
                taken = await self._take_turn(choice.actor, state, env, prompt)
            turns.append(
                record(self.chat, prompt, choice, taken, turn_index, observation, num_cut, time.monotonic() - begin)
            )
            result = taken.result
            if result.stop_reason is not None:
                return result.stop_reason
            observation, num_cut = cut_middle(result.observation.content, self.max_observation_chars)
            num_cut += result.num_cut_chars
            messages += [taken.action.response.message, replace(result.observation, content=observation)]
        return StopReason.MAX_TURNS

    async def _take_turn(self, actor: Actor, state: State, env: Env, prompt: Prompt) -> Taken:
        is_labelled = self.labeler.wants(actor)
        if not is_labelled or actor is Actor.TEACHER:
            action, result = await self._act_and_step(actor, state, env, prompt)
            return Taken(action, action if is_labelled else None, result)
        if self.teacher.reads_env:  # ask it before the env goes on
            label = await self._label(state, env, prompt)
            action, result = await self._act_and_step(actor, state, env, prompt)
        else:
            label, (action, result) = await _together(
                self._label(state, env, prompt), self._act_and_step(actor, state, env, prompt)
            )
        return Taken(action, label, result)

    async def _act_and_step(self, actor: Actor, state: State, env: Env, prompt: Prompt) -> tuple[Said, StepResult]:
        if actor is Actor.TEACHER:
            action = await self._ask_teacher(state, env, prompt)
        else:
            with self._waiting(state.key, f"the student's engine {with_address(self.student.engine)}", EngineError):
                response = await self.student.act(state, env)
            action = Said(response, response.token_ids)
        with self._waiting(state.key, "the env", EnvError):
            return action, checked(await env.step(action.response.message))

    async def _label(self, state: State, env: Env, prompt: Prompt) -> Said | LabelError:
        try:
            return await self._ask_teacher(state, env, prompt)
        except LabelError as error:
            place = "no label at turn %d of episode %d in round %d: %s"
            key = state.key
            logging.getLogger(__name__).info(place, key.turn_index, key.episode_index, key.round_index, error)
            return error

    async def _ask_teacher(self, state: State, env: Env, prompt: Prompt) -> Said:
        """Return the teacher's answer in the student's tokens.

        Raises:
            LabelError: the answer cannot be used.
            TeacherError: the teacher cannot be asked.
        """
        try:
            try:
                answer = await self._answer(state, env)
            except EmptyAnswer:
                answer = await self._answer(state, env)
        except EngineError as error:
            raise TeacherError(f"The teacher {self.teacher.id!r} failed: {error}") from error
        except PolicyError as error:  # a `ContextError` too: that the teacher reads less is not the student's doing
            raise LabelError(f"The teacher {self.teacher.id!r} gave no usable answer: {error}") from error
        # An answer becomes tokens once, in the student's format, and is never encoded again.
        token_ids = answer.token_ids or self.chat.response_ids(answer.message, prompt)
        said = " ".join([answer.message.content, answer.message.reasoning, *map(str, answer.message.tool_calls)])
        check_words(self.chat, token_ids, said, "the teacher's answer", LabelError)
        if len(prompt.prompt_ids) + len(token_ids) > self.max_context_tokens:
            raise LabelError(
                f"The answer of the teacher {self.teacher.id!r} is longer than the student's context has room for: "
                "raise student.max_context_tokens or lower teacher.max_new_tokens."
            )
        return Said(answer, token_ids)

    async def _answer(self, state: State, env: Env) -> Response:
        """Ask the teacher once, within its budget."""
        self.budget.ask()
        key = state.key._replace(seed=-1)  # it may be asked while the student is
        with self._waiting(key, f"the teacher {with_address(self.teacher)}", PolicyError):
            try:
                answer = await self.teacher.act(state, env)
            except AnswerError as error:
                self.budget.spend(error.usage)
                raise
        self.budget.spend(answer.usage, told_by=self.teacher.address)
        return answer

    @contextmanager
    def _waiting(self, key: Key, what: str, error_type: type[DaggerError]) -> Iterator[None]:
        """Call code that is not ours: the watchdog knows of it, and whatever it raises becomes `error_type`."""
        with self.watchdog.waiting(key, what), boundary(error_type, what):
            yield

    async def _scored(self, key: Key, turns: list[Turn]) -> list[Turn]:
        """Return the turns with the teacher's log-probabilities, where they are asked for."""
        if not self.labeler.logprobs:
            return turns
        try:
            with self._waiting(key, f"the log-probabilities of the teacher {with_address(self.teacher)}", PolicyError):
                return await scored(turns, cast(Scorer, self.teacher), self.labeler.num_top, self.budget)
        except PolicyError as error:
            raise TeacherError(f"The teacher {self.teacher.id!r} gave no log-probabilities: {error}") from error

    def max_turns(self, round_index: int) -> int:
        """Return how many turns an episode of a round may have."""
        cap = self.mixing.max_turns
        return self.world.max_turns if cap is None else min(int(cap(round_index)), self.world.max_turns)

    def _too_long(self, begin: float) -> str:
        is_episode = time.monotonic() - begin >= self.episode_timeout_s
        what, limit_s = ("the episode", self.episode_timeout_s) if is_episode else ("a turn", self.turn_timeout_s)
        return f"TimeoutError: {what} took more than {limit_s:g} s"


async def _together(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Run two coroutines at the same time; where one fails, the other is cancelled."""
    tasks = asyncio.ensure_future(one), asyncio.ensure_future(other)
    try:
        return await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


async def _close(env: Env | None) -> None:
    """Close an env. Its failure to close concerns no episode, and it may not hold up the others for ever."""
    if env is None:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            with boundary(EnvError, "the close of the env"):
                await env.close()
    except (TimeoutError, EnvError) as failure:
        logging.getLogger(__name__).warning("an env could not be closed: %s: %s", type(failure).__name__, failure)
