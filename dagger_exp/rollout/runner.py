"""One episode: the rollout of the paper's algorithm.

s_0 = reset
for t = 0, 1, ...:
    actor ~ mixture            who acts at this turn
    a_t   ~ actor(s_t)         the action that is executed
    l_t   = teacher(s_t)       the label, whoever acted
    s_t+1 = step(a_t)

The label depends on the state alone, so a served teacher is asked for it while student and environment work.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

from dagger_exp.chat import Chat, Prompt
from dagger_exp.errors import BudgetError, ContextError, EnvError, LabelError, PolicyError
from dagger_exp.policies.llm import AnswerError, LanguagePolicy
from dagger_exp.protocols import Env, Mixing, Policy, Scorer, World
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.scored import scored
from dagger_exp.rollout.watchdog import Watchdog, with_address
from dagger_exp.scaffolds.observations import cut_middle
from dagger_exp.types import Actor, Choice, Episode, Key, Response, State, StepResult, StopReason, Task, Turn

CLOSE_TIMEOUT_S = 60.0
"""Longest time that an env may take to free what it holds."""
LAST_WORDS = (StopReason.DEADLINE, StopReason.BUDGET)
"""Failures that another attempt would only repeat."""
T = TypeVar("T")
U = TypeVar("U")


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

    async def run(self, task: Task, key: Key, deadline: float = math.inf) -> Episode:
        """Play one episode, and again where infrastructure failed, with the same coins; the last attempt counts.

        A failure of infrastructure ends an episode with its own reason; it is never raised.

        Args:
            task: that is played.
            key: of the episode.
            deadline: on the monotonic clock, at which a straggler is cut.
        """
        episode = await self._attempt(task, key, deadline)
        for _ in range(self.max_attempts - 1):
            if episode.stop_reason.is_infrastructure and episode.stop_reason not in LAST_WORDS:
                episode = await self._attempt(task, key, deadline)
        return episode

    async def _attempt(self, task: Task, key: Key, deadline: float) -> Episode:
        begin, turns, error = time.monotonic(), [], ""
        self.watchdog.cut(key)  # of another attempt
        env: Env | None = None
        try:
            env = self.world.make(task)
            async with asyncio.timeout_at(min(deadline, begin + self.episode_timeout_s)):
                stop_reason = await self._play(env, key, turns)
                turns = await self._scored(key, turns)
        except TimeoutError:
            stop_reason = StopReason.DEADLINE if (is_cut := time.monotonic() >= deadline) else StopReason.TIMEOUT
            limit = "the round's deadline cut this episode" if is_cut else self._too_long(begin)
            error = limit + self.watchdog.cut(key)
        except (EnvError, LabelError, PolicyError) as failure:
            stop_reason, error = _reason(failure), f"{type(failure).__name__}: {failure}"
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
            chat_template_hash=self.chat.template_hash,
            error=error,
            wall_time_s=time.monotonic() - begin,
        )

    async def _play(self, env: Env, key: Key, turns: list[Turn]) -> StopReason:
        with self.watchdog.waiting(key, "the reset of its env"):
            messages = list(await env.reset())
        observation, num_cut = "\n".join(message.content for message in messages), 0
        prompt = self.chat.open(messages)
        for turn_index in range(self._max_turns(key.round_index)):
            if turns:
                prompt = self.chat.extend(prompt, turns[-1].response_ids, messages)
            if len(prompt.prompt_ids) + self.student.max_new_tokens > self.max_context_tokens:
                return StopReason.CONTEXT
            begin = time.monotonic()
            state = State(tuple(messages), prompt.prompt_ids, key._replace(turn_index=turn_index))
            choice = self.mixing.choose(state.key)
            async with asyncio.timeout(self.turn_timeout_s):
                action, label, result = await self._take_turn(choice.actor, state, env)
            turn = self._turn(turn_index, observation, num_cut, prompt, choice, action, label, result, begin)
            room = self.max_context_tokens - len(prompt.prompt_ids)  # the teacher may say more than a student can read
            if len(turn.response_ids) > room:
                return StopReason.CONTEXT
            is_label_read = len(turn.label_ids or ()) <= room
            turns.append(turn if is_label_read else replace(turn, label_text=None, label_ids=None))
            if result.stop_reason is not None or not is_label_read:
                return result.stop_reason or StopReason.CONTEXT
            observation, num_cut = cut_middle(result.observation.content, self.max_observation_chars)
            num_cut += result.num_cut_chars
            messages += [action.message, replace(result.observation, content=observation)]
        return StopReason.MAX_TURNS

    async def _take_turn(self, actor: Actor, state: State, env: Env) -> tuple[Response, Response | None, StepResult]:
        """Return the action, the label and what the env answers."""
        is_labelled = self.labeler.wants(actor)
        if not is_labelled or actor is Actor.TEACHER:
            action, result = await self._act_and_step(actor, state, env)
            return action, action if is_labelled else None, result
        if self.teacher.reads_env:
            label = await self._ask_teacher(state, env, "label")
            action, result = await self._act_and_step(actor, state, env)
            return action, label, result
        label, (action, result) = await _together(
            self._ask_teacher(state, env, "label"), self._act_and_step(actor, state, env)
        )
        return action, label, result

    async def _act_and_step(self, actor: Actor, state: State, env: Env) -> tuple[Response, StepResult]:
        if actor is Actor.TEACHER:
            action = await self._ask_teacher(state, env, "action")
        else:
            with self.watchdog.waiting(state.key, f"the student's engine {with_address(self.student.engine)}"):
                action = await self.student.act(state, env)
        with self.watchdog.waiting(state.key, "its env"):
            return action, await env.step(action.message)

    async def _ask_teacher(self, state: State, env: Env, what: str) -> Response:
        self.budget.check()
        try:
            with self.watchdog.waiting(state.key._replace(seed=-1), f"the teacher {with_address(self.teacher)}"):
                answer = await self.teacher.act(state, env)
        except PolicyError as error:  # its `ContextError` too: that the teacher reads less is not the student's doing
            if isinstance(error, AnswerError):
                self.budget.spend(error.usage)
            raise LabelError(f"The teacher {self.teacher.id!r} gave no {what}: {error}") from error
        self.budget.spend(answer.usage, told_by=self.teacher.address)
        return answer

    async def _scored(self, key: Key, turns: list[Turn]) -> list[Turn]:
        """Return the turns with the teacher's log-probabilities, where they are asked for."""
        if not self.labeler.logprobs:
            return turns
        try:
            with self.watchdog.waiting(key, f"the log-probabilities of the teacher {with_address(self.teacher)}"):
                return await scored(turns, cast(Scorer, self.teacher), self.labeler.num_top, self.budget)
        except PolicyError as error:
            raise LabelError(f"The teacher {self.teacher.id!r} gave no log-probabilities: {error}") from error

    def _max_turns(self, round_index: int) -> int:
        cap = self.mixing.max_student_turns
        return self.world.max_turns if cap is None else min(int(cap(round_index)), self.world.max_turns)

    def _turn(
        self,
        turn_index: int,
        observation: str,
        num_cut_chars: int,
        prompt: Prompt,
        choice: Choice,
        action: Response,
        label: Response | None,
        result: StepResult,
        begin: float,
    ) -> Turn:
        # A teacher's answer becomes tokens once, in the student's format, and is never encoded again.
        executed = action.token_ids or self.chat.response_ids(action.message, prompt)
        written = self._label(action, executed, label, prompt)
        is_student = choice.actor is Actor.STUDENT
        asked = label if is_student else action
        return Turn(
            turn_index=turn_index,
            actor=choice.actor,
            observation=observation,
            context_ids=prompt.context_ids,
            starts_branch=prompt.starts_branch,
            response_text=self._text(action, executed),
            response_ids=executed,
            sampling_logprobs=action.logprobs,
            beta=choice.beta,
            coin=choice.coin,
            kappa=choice.kappa,
            valid=result.valid,
            action_error=result.action_error,
            reward=result.reward,
            finish_reason=action.finish_reason,
            policy_version=action.policy_version,
            temperature=self.student.temperature if is_student else None,
            top_p=self.student.top_p if is_student else None,
            num_teacher_prompt_tokens=0 if asked is None else asked.usage.num_prompt_tokens,
            num_teacher_response_tokens=0 if asked is None else asked.usage.num_response_tokens,
            num_cut_chars=num_cut_chars,
            wall_time_s=time.monotonic() - begin,
            **written,
        )

    def _label(self, action: Response, executed: Any, label: Response | None, prompt: Prompt) -> dict[str, Any]:
        if label is None:
            return {}
        ids = executed if label is action else self.chat.response_ids(label.message, prompt)
        return {"label_text": self._text(label, ids), "label_ids": ids}

    def _text(self, response: Response, ids: Any) -> str:
        """Return a response to be read: with its tool calls, as the student would write them."""
        message = response.message
        return self.chat.parse(ids).content if message.tool_calls or message.reasoning else message.content

    def _too_long(self, begin: float) -> str:
        whole = time.monotonic() - begin >= self.episode_timeout_s
        what, limit_s = ("the episode", self.episode_timeout_s) if whole else ("a turn", self.turn_timeout_s)
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
    """Close an env. What it fails in then concerns no episode, and it may not hold up the others for ever."""
    if env is None:
        return
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await env.close()
    except (TimeoutError, EnvError) as failure:
        logging.getLogger(__name__).warning("an env could not be closed: %s: %s", type(failure).__name__, failure)


def _reason(failure: BaseException) -> StopReason:
    """Return the stop reason of a failure, by the boundary that it crossed."""
    match failure:
        case EnvError():
            return StopReason.SANDBOX
        case BudgetError():
            return StopReason.BUDGET
        case LabelError():
            return StopReason.TEACHER
        case ContextError():
            return StopReason.CONTEXT
        case _:
            return StopReason.ENGINE
