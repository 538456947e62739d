"""A policy behind an address: what it is asked, and what is made of its answers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError, PolicyError
from dagger_exp.policies.served import ServedPolicy
from dagger_exp.types import Key, Message, Response, State, ToolCall, Usage
from tests.provider import MODEL, Provider, serving

WORLD = RepoRepair()
STATE = State((Message("system", "Repair."), Message("user", "go")), (), Key(0, 0, "t", 0))
CALL = {"id": "a", "type": "function", "function": {"name": "run", "arguments": '{"command": "ls"}'}}


def answered(message: dict[str, Any], **settings: Any) -> tuple[Response, Provider]:
    """Return the response of a policy whose server says this, and the server."""

    def chat(body: dict[str, Any]) -> dict[str, Any]:
        choice = {"message": message, "finish_reason": message.get("finish_reason")}
        return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    provider = Provider(chat=chat)
    with serving(provider) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, **settings)

        async def act() -> Response:
            async with policy.connected():
                return await policy.act(STATE, WORLD.make(WORLD.tasks("train")[0]))

        return asyncio.run(act()), provider


def test_the_conversation_is_asked_and_the_text_is_the_answer() -> None:
    response, provider = answered({"content": " edit f1 3\n"}, max_new_tokens=9, temperature=0.5, request={"seed": 1})
    assert response.message == Message("assistant", "edit f1 3")
    assert response.usage == Usage(7, 3)
    body = provider.requests[0][1]
    assert body["messages"] == [{"role": "system", "content": "Repair."}, {"role": "user", "content": "go"}]
    assert (body["max_tokens"], body["temperature"], body["seed"], body["model"]) == (9, 0.5, 1, MODEL)


def test_tool_calls_are_a_part_of_the_message() -> None:
    response, _ = answered({"content": None, "tool_calls": [CALL]})
    assert response.message == Message("assistant", "", tool_calls=(ToolCall("run", '{"command": "ls"}'),))


@pytest.mark.parametrize(("keep", "reasoning"), [(False, ""), (True, "hm")])
def test_reasoning_is_kept_where_it_is_asked_for(keep: bool, reasoning: str) -> None:
    response, _ = answered({"content": "ls", "reasoning": "hm"}, keep_reasoning=keep)
    assert response.message == Message("assistant", "ls", reasoning=reasoning)


@pytest.mark.parametrize("answer", [{"content": None}, {"content": "edit", "finish_reason": "length"}])
def test_an_answer_that_was_cut_is_no_label(answer: dict[str, Any]) -> None:
    with pytest.raises(PolicyError, match=r"empty or was cut: raise teacher\.max_new_tokens"):
        answered(answer)


def test_an_answer_in_another_form_is_an_error() -> None:
    with pytest.raises(PolicyError, match="not understood"):
        answered({"content": "ls", "tool_calls": [{"id": "a"}]})


@pytest.mark.parametrize(("model", "refused"), [(MODEL, False), (None, False), ("other", True)])
def test_a_model_that_is_not_served_is_refused_with_those_that_are(model: str | None, refused: bool) -> None:
    with serving(Provider()) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=model)
        if refused:
            with pytest.raises(ConfigError, match=rf"{address} does not serve other.*teacher\.model.*{MODEL}"):
                policy.check()
        else:
            policy.check()
            assert policy.id == MODEL
