"""A policy behind an address: what it is asked, and what is made of its answers."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError
from dagger_exp.policies.llm import AnswerError
from dagger_exp.policies.served import ServedPolicy
from dagger_exp.protocols import Scores
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.scored import try_scoring
from dagger_exp.scaffolds.bash import BashScaffold
from dagger_exp.scaffolds.calls import find_call, written
from dagger_exp.scaffolds.tools import ToolScaffold
from dagger_exp.types import Key, Message, Response, State, ToolCall, Usage
from tests.provider import MODEL, Provider, serving

WORLD = RepoRepair()
STATE = State((Message("system", "Repair."), Message("user", "go")), (), Key(0, 0, "t", 0))
CALL = {"id": "a", "type": "function", "function": {"name": "run", "arguments": '{"command": "ls"}'}}
LS = ToolCall("execute_bash", '{"command": "ls"}')
TAGGED = "<tool_call>\n<function=execute_bash>\n<parameter=command>\nls\n</parameter>\n</function>\n</tool_call>"


def answered(message: dict[str, Any], state: State = STATE, **settings: Any) -> tuple[Response, Provider]:
    """Return the response of a policy whose server says this, and the server."""

    def chat(body: dict[str, Any]) -> dict[str, Any]:
        choice = {"message": message, "finish_reason": message.get("finish_reason")}
        return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}

    provider = Provider(chat=chat)
    with serving(provider) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, **settings)
        return asyncio.run(said_by(policy, state)), provider


async def said_by(policy: ServedPolicy, state: State = STATE) -> Response:
    async with policy.connected():
        return await policy.act(state, WORLD.make(WORLD.tasks("train")[0]))


def test_the_conversation_is_asked_and_the_text_is_the_answer() -> None:
    response, provider = answered({"content": " edit f1 3\n"}, max_new_tokens=9, temperature=0.5, request={"seed": 1})
    assert response.message == Message("assistant", "edit f1 3")
    assert response.usage == Usage(7, 3)
    body = provider.requests[0][1]
    assert body["messages"] == [{"role": "system", "content": "Repair."}, {"role": "user", "content": "go"}]
    assert (body["max_tokens"], body["temperature"], body["seed"], body["model"]) == (9, 0.5, 1, MODEL)


def test_half_a_surrogate_pair_is_no_text() -> None:
    response, _ = answered({"content": "caf\ud83d"})
    assert response.message.content == "caf?"


def test_tool_calls_are_a_part_of_the_message() -> None:
    response, _ = answered({"content": None, "tool_calls": [CALL]})
    assert response.message == Message("assistant", "", tool_calls=(ToolCall("run", '{"command": "ls"}'),))


def test_the_tools_of_the_scaffold_are_offered_and_a_call_that_is_text_is_a_call() -> None:
    scaffold = ToolScaffold()
    response, provider = answered({"content": f"I look.\n{TAGGED}"}, scaffold=scaffold)
    assert response.message == Message("assistant", "I look.", tool_calls=(LS,))
    assert provider.requests[0][1]["tools"] == list(scaffold.tools)
    assert provider.requests[0][1]["parallel_tool_calls"] is False
    response, provider = answered({"content": "```bash\nls\n```"}, scaffold=BashScaffold())
    assert response.message == Message("assistant", "```bash\nls\n```")
    assert "tools" not in provider.requests[0][1]


def test_calls_of_the_student_are_shown_as_calls_and_what_they_brought_as_their_answers() -> None:
    said = [Message("assistant", f"I look.\n{written(LS)}"), Message("tool", "a.py")]
    said += [Message("assistant", "I am done."), Message("user", "There is no tool call.")]
    said += [Message("assistant", "", tool_calls=(LS, LS)), Message("user", "There are 2 calls.")]
    state = State((*STATE.messages, *said), (), STATE.key)
    _, provider = answered({"content": "", "tool_calls": [CALL]}, state, scaffold=ToolScaffold())
    function = {"name": "execute_bash", "arguments": '{"command": "ls"}'}
    assert provider.requests[0][1]["messages"][2:] == [
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [{"id": "call_2_0", "type": "function", "function": function}],
        },
        {"role": "tool", "content": "a.py", "tool_call_id": "call_2_0"},
        {"role": "assistant", "content": "I am done."},
        {"role": "user", "content": "There is no tool call."},
        {"role": "assistant", "content": f"{written(LS)}\n{written(LS)}"},
        {"role": "user", "content": "There are 2 calls."},
    ]


def test_an_answer_is_read_once_and_not_with_every_later_turn() -> None:
    find_call.cache_clear()
    scaffold, said = ToolScaffold(), [Message("assistant", TAGGED), Message("tool", "a.py")]
    for num_turns in range(3):
        state = State((*STATE.messages, *said * num_turns), (), STATE.key)
        response, _ = answered({"content": TAGGED}, state, scaffold=scaffold)
        assert response.message.tool_calls == (LS,)
    assert find_call.cache_info().misses == 1


@pytest.mark.parametrize(("keep", "reasoning"), [(False, ""), (True, "hm")])
def test_reasoning_is_kept_where_it_is_asked_for(keep: bool, reasoning: str) -> None:
    response, _ = answered({"content": "ls", "reasoning": "hm"}, keep_reasoning=keep)
    assert response.message == Message("assistant", "ls", reasoning=reasoning)


WRITES = "```bash\necho '</think>' > a\n```"
CALLS = TAGGED.replace("\nls\n", "\necho '</think>' > a\n")


@pytest.mark.parametrize(
    ("content", "scaffold", "said", "thought"),
    [
        ("<think>\nhm\n</think>\n\nls", None, "ls", "hm"),
        ("hm</think>ls", None, "ls", "hm"),  # what its template began
        ("hm\n</think>\n\n```bash\nls\n```", BashScaffold(), "```bash\nls\n```", "hm"),
        (f"<think>hm</think>{WRITES}", BashScaffold(), WRITES, "hm"),
        (WRITES, BashScaffold(), WRITES, ""),
        (f"hm</think>I look.\n{TAGGED}", ToolScaffold(), "I look.", "hm"),
        (f"I write.\n{CALLS}", ToolScaffold(), "I write.", ""),
    ],
)
def test_a_thought_in_the_text_is_reasoning(content: str, scaffold: Any, said: str, thought: str) -> None:
    for keep in (False, True):
        response, _ = answered({"content": content}, scaffold=scaffold, keep_reasoning=keep)
        message = replace(response.message, tool_calls=())
        assert message == Message("assistant", said, reasoning=thought if keep else "")
        assert len(response.message.tool_calls) == isinstance(scaffold, ToolScaffold)


def test_a_text_that_was_told_apart_from_its_thought_stays_whole() -> None:
    response, _ = answered({"content": "grep </think>", "reasoning": "hm"})
    assert response.message == Message("assistant", "grep </think>")


@pytest.mark.parametrize(
    "answer",
    [
        {"content": None},
        {"content": "edit", "finish_reason": "length"},
        {"content": "<think>hm"},
        {"content": "</think>"},
    ],
)
def test_an_answer_that_was_cut_is_no_label(answer: dict[str, Any]) -> None:
    with pytest.raises(AnswerError, match=r"is empty|was cut: raise teacher\.max_new_tokens") as refused:
        answered(answer)
    assert refused.value.usage == Usage(7, 3)


@pytest.mark.parametrize(
    "other",
    [
        {"tool_calls": [{"id": "a"}]},
        {"tool_calls": [{"id": "a", "function": {"name": 5, "arguments": "{}"}}]},
        {"tool_calls": [{"id": "a", "function": {"name": "run", "arguments": {"command": "ls"}}}]},
        {"content": 5},
        {"reasoning": ["hm"]},
        {"finish_reason": 5},
    ],
)
def test_an_answer_in_another_form_is_an_error_that_has_its_price(other: dict[str, Any]) -> None:
    with pytest.raises(AnswerError, match="not understood") as refused:
        answered({"content": "ls"} | other)
    assert refused.value.usage == Usage(7, 3)


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("max_new_tokens", [0, -1], "at least 1"),
        ("max_context_tokens", [0, -1], "at least 1"),
        ("temperature", [-0.5, math.nan], "at least 0"),
        ("top_p", [0.0, 1.5, math.nan], "above 0 and at most 1"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name: str, values: list[float], wanted: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^teacher\.{name} is {value}; it must be {wanted}\.$"):
            ServedPolicy(endpoint=Endpoint(address="http://host:1"), **{name: value})  # pyright: ignore[reportArgumentType] - of several types


def test_a_request_that_no_json_can_hold_is_refused() -> None:
    for request in ({"min_p": math.nan}, {"stop": {1}}):
        with pytest.raises(ConfigError, match=r"^teacher\.request cannot be sent: "):
            ServedPolicy(endpoint=Endpoint(address="http://127.0.0.1:1"), request=request)


@pytest.mark.parametrize("answer", [[], {"choices": []}, {"choices": ["a"]}, {"choices": [], "usage": [1]}])
def test_an_answer_without_a_message_is_an_error_that_names_the_server(answer: Any) -> None:
    provider = Provider(chat=lambda body: answer)
    with serving(provider) as address, pytest.raises(AnswerError, match=f"^{address} answers in a form .* not underst"):
        asyncio.run(said_by(ServedPolicy(endpoint=Endpoint(address=address), model=MODEL)))


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


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"max_context_tokens": 4096}, ""),
        ({"max_context_tokens": 5000}, "reads 4096 tokens, and a conversation may need 5000: start it with a longer"),
        ({"max_new_tokens": 4096}, "reads 4096 tokens, and a conversation may need 4097: .* or lower teacher"),
    ],
)
def test_a_server_that_reads_too_little_is_refused(settings: dict[str, Any], refused: str) -> None:
    with serving(Provider(max_model_len=4096)) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, **settings)
        if refused:
            with pytest.raises(ConfigError, match=f"{address} {refused}"):
                policy.check()
        else:
            policy.check()


@pytest.mark.parametrize("max_model_len", [4096, 4097])
def test_log_probabilities_need_a_token_more_than_the_longest_conversation(max_model_len: int) -> None:
    provider = Provider(max_model_len=max_model_len)
    rows = [None, {"7": {"logprob": -0.5, "rank": 1}}]
    provider.answers["/v1/completions"] = lambda body: {"choices": [{"prompt_logprobs": rows}]}
    with serving(provider) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, max_context_tokens=4096)
        policy.check()  # who asks for text only needs no more
        if max_model_len > 4096:
            assert asyncio.run(tried(policy)) is None
        else:
            with pytest.raises(ConfigError, match=f"{address} reads 4096 tokens, and a conversation may need 4097: "):
                asyncio.run(tried(policy))


async def tried(policy: ServedPolicy) -> None:
    """Ask for log-probabilities as a run does before its first episode."""
    async with policy.connected():
        await try_scoring(policy, Labeler(logprobs=True), 7)


NO_TOOLS = '{"error": {"message": "\\"auto\\" tool choice requires --enable-auto-tool-choice and a parser to be set"}}'


def test_tools_are_tried_once_before_the_first_episode() -> None:
    provider, scaffold = Provider(), ToolScaffold()
    with serving(provider) as address:
        for policy in (
            ServedPolicy(endpoint=Endpoint(address=address), model=MODEL),
            ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, scaffold=BashScaffold()),
            ServedPolicy(endpoint=Endpoint(address=address), scaffold=scaffold, max_new_tokens=9),
        ):
            policy.check()
            policy.check()
    [(_, body, _)] = provider.requests
    assert (body["tools"], body["max_tokens"], body["model"]) == (list(scaffold.tools), 1, MODEL)


@pytest.mark.parametrize(
    ("fault", "mend"),
    [
        (NO_TOOLS, "start vLLM with --enable-auto-tool-choice --tool-call-parser hermes, .* or choose scaffold=bash"),
        (
            '{"error": {"message": "no temperature here"}}',
            "fix teacher.endpoint.address, teacher.model or teacher.req",
        ),
        (
            '{"error": {"message": "Unsupported parameter: parallel_tool_calls"}}',
            r"leave that out with \+teacher\.request\.parallel_tool_calls=null\.",
        ),
    ],
)
def test_a_server_that_takes_no_tools_is_refused_with_the_mend(fault: str, mend: str) -> None:
    provider = Provider()
    provider.faults = [fault]
    with serving(provider) as address:
        policy = ServedPolicy(
            endpoint=Endpoint(address=address), model=MODEL, scaffold=ToolScaffold(), tool_call_parser="hermes"
        )
        with pytest.raises(ConfigError, match=f"{address} answers 400.*: {mend}"):
            policy.check()


def test_what_a_provider_does_not_take_can_be_left_out() -> None:
    without = {"parallel_tool_calls": None, "max_tokens": None, "max_completion_tokens": 9}
    _, provider = answered({"content": TAGGED}, scaffold=ToolScaffold(), request=without)
    assert not {"parallel_tool_calls", "max_tokens"} & provider.requests[0][1].keys()
    assert provider.requests[0][1]["max_completion_tokens"] == 9


def test_a_provider_need_not_list_its_models_but_must_answer() -> None:
    provider = Provider(lists_models=False)
    with serving(provider) as address:
        ServedPolicy(endpoint=Endpoint(address=address), model=MODEL).check()
        with pytest.raises(ConfigError, match="/v1/models answers 404"):
            ServedPolicy(endpoint=Endpoint(address=address)).check()
        provider.answers.clear()
        with pytest.raises(ConfigError, match=f"{address} answers 404: .*: fix teacher.endpoint.address"):
            ServedPolicy(endpoint=Endpoint(address=address), model=MODEL).check()


def test_log_probabilities_are_asked_of_the_model_whatever_its_name_in_the_record() -> None:
    provider = Provider()
    rows = [None, {"7": {"logprob": -0.5, "rank": 1}}]
    provider.answers["/v1/completions"] = lambda body: {"choices": [{"prompt_logprobs": rows}]}
    with serving(provider) as address:
        policy = ServedPolicy(endpoint=Endpoint(address=address), model=MODEL, id="big")

        async def score() -> Scores:
            async with policy.connected():
                return await policy.score([3, 7])

        assert asyncio.run(score()).logprobs == [-0.5]
    assert provider.requests[0][1]["model"] == MODEL
