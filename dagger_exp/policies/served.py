"""A policy behind an OpenAI-compatible address: text in, text and tool calls out."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from dagger_exp.engines.endpoint import Endpoint, MissingError
from dagger_exp.engines.prompt_logprobs import score_at, usage_of
from dagger_exp.errors import ConfigError, PolicyError, check_at_least
from dagger_exp.policies.llm import AnswerError, checked_answer, normalized, thought_apart
from dagger_exp.protocols import Env, Scaffold, Scores
from dagger_exp.types import Message, Response, State, ToolCall


class ServedPolicy:
    """Answers with what a served model says to the conversation.

    Args:
        endpoint: of the server.
        model: name under which it is served; None where the server has only one.
        max_new_tokens: longest response, in the model's tokens.
        temperature: 0 is greedy.
        top_p: nucleus; 1 keeps every token.
        scaffold: has the tools that the model may call, and reads its calls where it writes them as text.
        keep_reasoning: whether what it thought before it answered is a part of the answer.
        tokenizer: folder or hub name of its tokenizer, which only log-probabilities need.
        max_context_tokens: what conversations grow to; a server that tells that it reads less is refused.
        tool_call_parser: of vLLM, with which a server of this model has to be started where there are tools.
        request: more of the request's body, as a provider takes it; null leaves out what is there by default.
        id: name under which the policy is recorded; None is the model's.

    Raises:
        ConfigError: a value is out of its range.
    """

    reads_env = False

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        model: str | None = None,
        max_new_tokens: int = 1024,
        temperature: float = 0.0,
        top_p: float = 1.0,
        scaffold: Scaffold | None = None,
        keep_reasoning: bool = False,
        tokenizer: str | None = None,
        max_context_tokens: int | None = None,
        tool_call_parser: str | None = None,
        request: Mapping[str, Any] | None = None,
        id: str | None = None,
    ) -> None:
        check_at_least(1, "teacher", max_new_tokens=max_new_tokens, max_context_tokens=max_context_tokens)
        check_at_least(0, "teacher", temperature=temperature)
        if not 0 < top_p <= 1:
            raise ConfigError(f"teacher.top_p is {top_p}; it must be above 0 and at most 1.")
        self.endpoint, self.model, self.keep_reasoning = endpoint, model, keep_reasoning
        self.tokenizer, self.scaffold, self.tool_call_parser = tokenizer, scaffold, tool_call_parser
        self.max_context_tokens, self.max_new_tokens = max_context_tokens, max_new_tokens
        body: dict[str, Any] = {"max_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p}
        if scaffold and scaffold.tools:
            body |= {"tools": list(scaffold.tools), "parallel_tool_calls": False}  # a turn has one call
        self.request = {name: value for name, value in {**body, **(request or {})}.items() if value is not None}
        try:
            json.dumps(self.request, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"teacher.request cannot be sent: {error}.") from error
        self._id, self._is_tried, self._length = id, False, math.inf

    @property
    def id(self) -> str:
        return self._id or self.model or "served"

    @property
    def address(self) -> str:
        return self.endpoint.address

    async def act(self, state: State, env: Env) -> Response:
        """Return the answer.

        Raises:
            AnswerError: it is empty, was cut, or is in a form that is not understood.
            ContextError: the conversation is too long for the model.
            EngineError: the server refuses or has failed.
        """
        messages = normalized(state.messages, self.scaffold)
        body = {"model": self.model, "messages": [_row(*at) for at in enumerate(messages)], **self.request}
        answer = await self.endpoint.post("/v1/chat/completions", body)
        usage = usage_of(answer)
        try:
            choice = answer["choices"][0]
            [message] = normalized([_message(choice["message"])], self.scaffold)
            message = thought_apart(message, self.scaffold)
            finish_reason = _text(choice.get("finish_reason")) or "stop"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            said = f"{self.endpoint.address} answers in a form that is not understood: {error!r}"
            raise AnswerError(said, usage) from error
        response = Response(
            message=message if self.keep_reasoning or not message.reasoning else replace(message, reasoning=""),
            finish_reason=finish_reason,
            usage=usage,
        )
        return checked_answer(response, self.id)

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of given tokens, which a vLLM server tells while it writes one more.

        Raises:
            ConfigError: it does not read that many.
            EngineError: it gives none.
        """
        self._check_length((self.max_context_tokens or 0) + 1)
        return await score_at(self.endpoint, self.model, token_ids, num_top)

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Keep connections open."""
        return self.endpoint.connected()

    def check(self) -> None:
        """Look whether the server answers, serves the model, reads enough and takes the tools.

        Raises:
            ConfigError: it does not.
        """
        try:
            self._check_card(self.endpoint.models())
            is_listed = True
        except MissingError:  # not every provider tells what it serves
            if self.model is None:
                raise
            is_listed = False
        if not self._is_tried and ("tools" in self.request or not is_listed):
            self._try()

    def _check_card(self, cards: Mapping[str, Mapping[str, Any]]) -> None:
        if self.model is None and len(cards) == 1:
            self.model = next(iter(cards))
        if self.model is None or self.model not in cards:
            raise ConfigError(
                f"{self.endpoint.address} does not serve {self.model or 'one model only'}: set teacher.model to one of "
                f"{', '.join(list(cards)[:10])}."
            )
        self._length = cards[self.model].get("max_model_len") or math.inf
        self._check_length(max(self.max_context_tokens or 0, self.max_new_tokens + 1))

    def _check_length(self, needed: int) -> None:
        if self._length < needed:
            raise ConfigError(
                f"{self.endpoint.address} reads {self._length} tokens, and a conversation may need {needed}: start it "
                "with a longer --max-model-len, or lower teacher.max_context_tokens or teacher.max_new_tokens."
            )

    def _try(self) -> None:
        """Ask for one token, so that a server that takes no tools is known before the first episode."""
        hello = [{"role": "user", "content": "hello"}]
        limit = {"max_tokens": 1} if "max_tokens" in self.request else {}  # some take it by another name only

        async def ask() -> None:
            async with self.connected():
                body = {"model": self.model, "messages": hello, **self.request, **limit}
                await self.endpoint.post("/v1/chat/completions", body)

        try:
            asyncio.run(ask())
        except PolicyError as error:
            said = str(error).rstrip(".")
            raise ConfigError(f"{said}: {self._cure(said.removeprefix(self.endpoint.address))}.") from error
        self._is_tried = True

    def _cure(self, said: str) -> str:
        if "parallel_tool_calls" in said:
            return "leave that out with +teacher.request.parallel_tool_calls=null"
        if "tool" not in said:
            return "fix teacher.endpoint.address, teacher.model or teacher.request"
        parser = self.tool_call_parser or "NAME"
        return (
            f"start vLLM with --enable-auto-tool-choice --tool-call-parser {parser}, as in the line of dagger-serve "
            "teacher, or choose scaffold=bash, which needs no tools"
        )


def _row(index: int, message: Message) -> dict[str, Any]:
    """Return a message as the protocol has it: with the name of the call that it makes, or that it answers.

    What the model thought stays with it.
    """
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.role == "tool":
        row["tool_call_id"] = f"call_{index - 1}_0"
    if message.tool_calls:
        row["tool_calls"] = [
            {
                "id": f"call_{index}_{i}",
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for i, call in enumerate(message.tool_calls)
        ]
    return row


def _message(row: Mapping[str, Any]) -> Message:
    calls = [call["function"] for call in row.get("tool_calls") or []]
    return Message(
        "assistant",
        _text(row.get("content")).strip(),
        reasoning=_text(row.get("reasoning")) or _text(row.get("reasoning_content")),
        tool_calls=tuple(ToolCall(_text(call["name"]), _text(call.get("arguments")) or "{}") for call in calls),
    )


def _text(value: str | None) -> str:
    """Return a part of an answer, nothing for null; raises `TypeError` where it is no text.

    Half a surrogate pair, which JSON can spell, becomes "?": no tokenizer, no file and no server takes it.
    """
    if not isinstance(value, str | None):
        raise TypeError(f"{value!r} is no text")
    return (value or "").encode(errors="replace").decode()
