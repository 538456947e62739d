"""A policy that is a language model: prompt token ids to an engine, its tokens back as a message."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import ClassVar

from dagger_exp.chat.conversation import Chat
from dagger_exp.errors import ContextError, MalformedAction, PolicyError
from dagger_exp.protocols import Engine, Env, Sampling, Scaffold, Scores
from dagger_exp.scaffolds.calls import after_thought
from dagger_exp.types import Message, Response, State, ToolCall, Usage


class AnswerError(PolicyError):
    """A teacher's answer is no label; `usage` is what it has cost all the same."""

    def __init__(self, text: str, usage: Usage) -> None:
        super().__init__(text)
        self.usage = usage


class EmptyAnswer(AnswerError):  # noqa: N818 - it names what came
    """A teacher ended its answer at once; asked again, it often says something."""


@dataclass(frozen=True, kw_only=True)
class LanguagePolicy:
    """Samples a response from an engine.

    Args:
        engine: generates the tokens.
        chat: reads the tokens as a message.
        max_new_tokens: longest response, in tokens.
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps every token.
        id: name under which the policy is recorded.
    """

    engine: Engine
    chat: Chat
    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    id: str = "student"
    reads_env: ClassVar[bool] = False

    @property
    def address(self) -> str:
        return self.engine.address

    async def act(self, state: State, env: Env) -> Response:
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, state.key)
        generation = await self.engine.generate(state.prompt_ids, sampling)
        return Response(
            message=self.chat.parse(generation.token_ids),
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            finish_reason=generation.finish_reason,
            policy_version=generation.policy_version,
            temperature=self.temperature,
            top_p=self.top_p,
        )

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold what the engine needs."""
        return self.engine.connected()

    def check(self) -> None:
        """Leave it to the engine, which looks when it is given weights."""

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of given tokens."""
        return await self.engine.score(token_ids, num_top)


@dataclass(frozen=True, kw_only=True)
class ModelTeacher(LanguagePolicy):
    """A teacher in this process, with a tokenizer and a chat template of its own: it reads and writes text.

    What it thinks before it answers is no part of the answer.

    Args:
        max_context_tokens: longest prompt and response that the model reads.
        scaffold: reads tool calls out of text, so that this model and the student each see them in their own format.
    """

    max_context_tokens: int
    scaffold: Scaffold | None = None
    id: str = "teacher"

    async def act(self, state: State, env: Env) -> Response:
        """Return the action; raises `AnswerError`, or `ContextError` where the conversation is too long for it."""
        prompt_ids = self.chat.open(normalized(state.messages, self.scaffold)).prompt_ids
        if len(prompt_ids) + self.max_new_tokens > self.max_context_tokens:
            raise ContextError(
                f"{self.id} reads {self.max_context_tokens} tokens; the prompt has {len(prompt_ids)}, and the answer "
                f"may have {self.max_new_tokens}: raise teacher.max_context_tokens or lower teacher.max_new_tokens."
            )
        own = state.key._replace(task_id=f"{self.id} {state.key.task_id}")  # the student draws from the task's
        sampling = Sampling(self.max_new_tokens, self.temperature, self.top_p, own)
        generation = await self.engine.generate(prompt_ids, sampling)
        usage = Usage(len(prompt_ids), len(generation.token_ids))
        [message] = normalized([self.chat.parse(generation.token_ids)], self.scaffold)
        message = replace(thought_apart(message, self.scaffold), reasoning="")
        return checked_answer(Response(message, finish_reason=generation.finish_reason, usage=usage), self.id)


ENDED_BY_OTHERS = ("abort", "content_filter", "error")
"""Finish reasons of an answer that a server ended, neither the model nor its longest length."""


def checked_answer(answer: Response, teacher_id: str) -> Response:
    """Return a teacher's answer; raises `AnswerError` where it was cut, `EmptyAnswer` where it is empty."""
    if answer.finish_reason in ENDED_BY_OTHERS:
        raise AnswerError(f"the answer of {teacher_id} was ended by its server: {answer.finish_reason}", answer.usage)
    if answer.finish_reason == "length":
        raise AnswerError(f"the answer of {teacher_id} was cut: raise teacher.max_new_tokens", answer.usage)
    if not (answer.message.content or answer.message.tool_calls):
        raise EmptyAnswer(f"the answer of {teacher_id} is empty", answer.usage)
    return answer


def thought_apart(message: Message, scaffold: Scaffold | None) -> Message:
    """Return a message with what it begins by thinking as its reasoning.

    A server does this where it knows how its model thinks. What only looks like the end of a thought, as in a file
    that a call writes, is none: the call is the same without a thought.
    """
    said = after_thought(message.content)
    if message.reasoning or said == message.content:
        return message
    thought = message.content.removesuffix(said).strip().removeprefix("<think>").removesuffix("</think>").strip()
    apart = replace(message, content=said.strip(), reasoning=thought)
    return apart if _call(apart, scaffold) == _call(message, scaffold) else message


def _call(message: Message, scaffold: Scaffold | None) -> ToolCall | None:
    try:
        return scaffold.read(message) if scaffold else None
    except MalformedAction:
        return None


def normalized(messages: Sequence[Message], scaffold: Scaffold | None) -> list[Message]:
    """Return messages with the calls of both roles as calls, whoever's format they were written in."""
    return [scaffold.normalized(m) if scaffold and m.role == "assistant" else m for m in messages]
