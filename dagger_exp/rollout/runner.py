"""One episode: the rollout of the paper's algorithm.

s_0 = reset
for t = 0, 1, ...:
    actor ~ mixture            who acts at this turn
    a_t   ~ actor(s_t)         the action that is executed
    l_t   = teacher(s_t)       the label, whoever acted
    s_t+1 = step(a_t)
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass

from dagger_exp.chat import Chat, Prompt
from dagger_exp.errors import EnvError, LabelError, PolicyError
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.protocols import Env, Mixing, Policy, World
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.types import Actor, Choice, Episode, Key, Message, Response, State, StepResult, StopReason, Task, Turn

CLOSE_TIMEOUT_S = 60.0
"""Longest time that an env may take to free what it holds."""


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
        max_context_tokens: a prompt that leaves no room for a response within this many tokens ends the episode.
        episode_timeout_s: wall-clock limit of an attempt.
        max_attempts: how often an episode is tried that fails for reasons of infrastructure.
    """

    world: World
    student: LanguagePolicy
    teacher: Policy
    mixing: Mixing
    labeler: Labeler
    chat: Chat
    max_context_tokens: int
    episode_timeout_s: float = 3600.0
    max_attempts: int = 1

    async def run(self, task: Task, key: Key) -> Episode:
        """Play one episode, and again where infrastructure failed, with the same coins; the last attempt counts.

        A failure of infrastructure ends an episode with its own reason; it is never raised.
        """
        episode = await self._attempt(task, key)
        for _ in range(self.max_attempts - 1):
            if episode.stop_reason.is_infrastructure:
                episode = await self._attempt(task, key)
        return episode

    async def _attempt(self, task: Task, key: Key) -> Episode:
        begin, turns, error = time.monotonic(), [], ""
        env: Env | None = None
        try:
            env = self.world.make(task)
            async with asyncio.timeout(self.episode_timeout_s):
                stop_reason = await self._play(env, key, turns)
        except (TimeoutError, EnvError, LabelError, PolicyError) as failure:
            said = str(failure) or f"the episode took more than {self.episode_timeout_s:g} s"
            stop_reason, error = _reason(failure), f"{type(failure).__name__}: {said}"
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
        messages = list(await env.reset())
        observation = "\n".join(message.content for message in messages)
        prompt = self.chat.open(messages)
        for turn_index in range(self._max_turns(key.round_index)):
            if len(prompt.prompt_ids) + self.student.max_new_tokens > self.max_context_tokens:
                return StopReason.CONTEXT
            begin = time.monotonic()
            state = State(tuple(messages), prompt.prompt_ids, key._replace(turn_index=turn_index))
            choice = self.mixing.choose(state.key)
            action = await self._act(choice.actor, state, env)
            label = await self.labeler.label(state, choice.actor, action, self.teacher, env)
            result = await env.step(action.message)
            turn = self._turn(turn_index, observation, prompt, choice, action, label, result, time.monotonic() - begin)
            turns.append(turn)
            if result.stop_reason is not None:
                return result.stop_reason
            messages += [action.message, result.observation]
            observation = result.observation.content
            prompt = self.chat.extend([*prompt.prompt_ids, *turn.response_ids], messages, num_new=1)
        return StopReason.MAX_TURNS

    async def _act(self, actor: Actor, state: State, env: Env) -> Response:
        if actor is Actor.STUDENT:
            return await self.student.act(state, env)
        try:
            return await self.teacher.act(state, env)
        except PolicyError as error:
            raise LabelError(f"The teacher {self.teacher.id!r} gave no action: {error}") from error

    def _max_turns(self, round_index: int) -> int:
        cap = self.mixing.max_student_turns
        return self.world.max_turns if cap is None else min(int(cap(round_index)), self.world.max_turns)

    def _turn(
        self,
        turn_index: int,
        observation: str,
        prompt: Prompt,
        choice: Choice,
        action: Response,
        label: Message | None,
        result: StepResult,
        wall_time_s: float,
    ) -> Turn:
        return Turn(
            turn_index=turn_index,
            actor=choice.actor,
            observation=observation,
            context_ids=prompt.context_ids,
            starts_branch=prompt.starts_branch,
            response_text=action.message.content,
            # A teacher's turn becomes tokens once, in the student's format, and is never encoded again.
            response_ids=action.token_ids or self.chat.response_ids(action.message),
            sampling_logprobs=action.logprobs,
            label_text=None if label is None else label.content,
            label_ids=None if label is None else self.chat.response_ids(label),
            beta=choice.beta,
            coin=choice.coin,
            kappa=choice.kappa,
            valid=result.valid,
            reward=result.reward,
            finish_reason=action.finish_reason,
            policy_version=action.policy_version,
            wall_time_s=wall_time_s,
        )


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
        case TimeoutError():
            return StopReason.TIMEOUT
        case EnvError():
            return StopReason.SANDBOX
        case LabelError():
            return StopReason.TEACHER
        case _:
            return StopReason.ENGINE
