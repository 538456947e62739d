"""A server that fails, and what is made of it."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.errors import ConfigError, ContextError, EngineError
from tests.provider import FAULTS, MODEL, Provider, chat_answer, free_port, serving

PATH, BODY = "/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}
KEY = "sk-planted"
HTTP = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def address(provider: Provider) -> Iterator[str]:
    with serving(provider) as address:
        yield address


def ask(endpoint: Endpoint, times: int = 1, body: Mapping[str, Any] = BODY) -> list[Any]:
    """Return the answers to that many requests at once; an error as itself."""

    async def all_of_them() -> list[Any]:
        async with endpoint.connected():
            asked = (endpoint.post(PATH, body) for _ in range(times))
            return await asyncio.gather(*asked, return_exceptions=True)

    return asyncio.run(all_of_them())


def patient(address: str, **settings: Any) -> Endpoint:
    return Endpoint(**{"address": address, "timeout_s": 1.0, "first_pause_s": 0.02} | settings)


@pytest.mark.parametrize("text", ["grün \N{CHECK MARK}", "half a pair: \ud83d", '"\n\0'])
def test_a_text_arrives_as_it_was(provider: Provider, address: str, text: str) -> None:
    sent = {"messages": [{"role": "user", "content": text}], "seed": 2**63, "top_p": 1e-9}
    ask(patient(address), body=sent)
    assert [body for _, body, _ in provider.requests] == [sent]


@pytest.mark.parametrize("fault", FAULTS)
def test_what_may_pass_is_tried_again(provider: Provider, address: str, fault: str) -> None:
    provider.faults = [fault, fault]
    endpoint = patient(address)
    [answer] = ask(endpoint)
    assert answer["choices"][0]["message"]["content"] == "test"
    assert (len(provider.requests), endpoint.num_failures) == (3, 2)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_pass_is_an_error_that_names_the_address(provider: Provider, address: str, fault: str) -> None:
    provider.faults = [fault] * 2
    [error] = ask(patient(address, max_attempts=2))
    assert isinstance(error, EngineError)
    assert address in str(error)


def test_an_error_tells_what_earlier_attempts_met(provider: Provider, address: str) -> None:
    provider.faults = ["500", "half", "cut", "cut"]
    [error] = ask(patient(address, max_attempts=4))
    last, *earlier = str(error).split("; before that: ")
    assert "Disconnected" in last
    assert len(earlier) == 2
    assert "answers 500" in earlier[0]
    assert "no JSON" in earlier[1]


def test_a_request_that_is_refused_is_not_repeated(provider: Provider, address: str) -> None:
    provider.faults = ['{"error": {"message": "no such parameter"}}']
    [error] = ask(patient(address))
    assert isinstance(error, EngineError)
    assert "400: no such parameter" in str(error)
    assert len(provider.requests) == 1


@pytest.mark.parametrize("code", [502, "502", 429, 408, 0, None, "rate_limit_exceeded", "server_error"])
def test_an_error_within_a_good_answer_is_tried_again_where_it_may_pass(code: int | str | None) -> None:
    said = [{"error": {"message": "upstream error", "code": code}}, {"error": "upstream error"}]
    with serving(Provider(chat=lambda body: said.pop(0) if said else chat_answer(body))) as address:
        endpoint = patient(address)
        [answer] = ask(endpoint)
    assert answer["choices"][0]["message"]["content"] == "test"
    assert endpoint.num_failures == 2


@pytest.mark.parametrize(("code", "num_requests"), [(502, 2), (None, 2), (400, 1), ("invalid_api_key", 1)])
def test_an_error_within_a_good_answer_is_told(code: int | str | None, num_requests: int) -> None:
    refused = {"choices": [], "error": {"message": "upstream error", "code": code}}
    with serving(provider := Provider(chat=lambda body: refused)) as address:
        [error] = ask(patient(address, max_attempts=2))
    assert isinstance(error, EngineError)
    assert str(error).endswith(": upstream error")
    assert len(provider.requests) == num_requests


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"message": "no money", "type": "insufficient_quota", "code": "insufficient_quota"}),
        (429, {"message": "no money", "type": "insufficient_quota"}),
        (402, {"message": "no money"}),
        (500, {"message": "LoRA rank 64 is greater than max_lora_rank 16."}),
    ],
)
def test_what_no_pause_fixes_is_asked_once(status: int, error: dict[str, str]) -> None:
    said = said_by(f"HTTP/1.1 {status} No", json.dumps({"error": error}), lambda at: ask(patient(at)))
    assert f"answers {status}: {error['message']}" in said
    assert "before that" not in said
    assert "TransientError:" not in said


def test_why_a_request_is_tried_again_is_logged_once_and_without_the_key(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    reasons = [f"{KEY} has used 29 of 30 in req_7f", f"{KEY} has used 30 of 30 in req_a1", "busy"]
    said = [{"error": {"message": reason, "code": 429}} for reason in reasons]
    with serving(Provider(chat=lambda body: said.pop(0) if said else chat_answer(body))) as address:
        ask(patient(address, api_key_env="SOME_KEY"))
    own = [record for record in caplog.records if record.name.startswith("dagger_exp")]
    assert [record.getMessage() for record in own] == [
        f"a request is retried: {address} answers 429: *** has used 29 of 30 in req_7f",
        f"a request is retried: {address} answers 429: busy",
    ]
    assert {record.levelno for record in own} == {logging.WARNING}


def test_a_prompt_that_is_too_long_for_the_server_is_its_own_error(provider: Provider, address: str) -> None:
    provider.faults = ['{"error": {"message": "This model\'s maximum context length is 512 tokens."}}']
    [error] = ask(patient(address))
    assert isinstance(error, ContextError)


def test_a_server_that_asks_for_a_pause_gets_it(provider: Provider, address: str) -> None:
    provider.faults = ["429"]
    endpoint, begin = patient(address, first_pause_s=0.0), time.monotonic()
    ask(endpoint)
    assert endpoint.num_failures == 1
    assert time.monotonic() - begin >= 0.05  # its Retry-After, though its own pause is none


def test_a_pause_is_also_for_those_that_wait_for_their_place(provider: Provider, address: str) -> None:
    provider.faults = ["429-long"]
    ask(patient(address, first_pause_s=0.0, max_requests_per_s=20.0), times=10)
    assert len(provider.arrivals) == 11
    assert sum(arrival < provider.arrivals[0] + 0.9 for arrival in provider.arrivals) <= 3  # of 10 without the pause


def test_more_than_a_server_takes_is_sent_at_its_pace() -> None:
    provider = Provider(limit_per_s=50.0)
    with serving(provider) as address:
        answers = ask(patient(address, first_pause_s=0.05), times=150)
    assert not [answer for answer in answers if isinstance(answer, Exception)]
    assert len(provider.requests) < 3 * 150  # all of them, all at once, again and again


def test_a_refusal_makes_no_request_earlier_than_the_rate(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dagger_exp.engines.refusals.MAX_GAP_S", 0.01)  # of 5 s, below which a rate would have to be
    provider.faults = ["429"]
    ask(patient(address, max_requests_per_s=10.0), times=4)
    assert provider.arrivals[-1] - provider.arrivals[0] >= 0.35


def test_requests_keep_to_a_shared_rate(address: str) -> None:
    begin = time.monotonic()
    assert len(ask(patient(address, max_requests_per_s=50.0), times=11)) == 11
    assert time.monotonic() - begin >= 0.2


def test_the_key_comes_from_the_environment_and_is_sent(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-planted")
    ask(patient(address, api_key_env="SOME_KEY"))
    assert provider.requests[0][2]["Authorization"] == "Bearer sk-planted"


@pytest.mark.parametrize("written", ["sk-planted\n", " sk-planted \r\n"])
def test_a_key_that_a_file_ended_with_a_line_break_is_the_key(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("SOME_KEY", written)
    endpoint = patient(address, api_key_env="SOME_KEY")
    assert endpoint.models()
    ask(endpoint)
    assert provider.requests[0][2]["Authorization"] == "Bearer sk-planted"


@pytest.mark.parametrize("key", ["sk-pla\nnted", "sk-pla\x7fnted", "sk-plänted", "sk-pl\N{BULLET}nted"])
def test_a_key_that_is_none_is_refused_without_being_shown(
    address: str, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("SOME_KEY", key)
    endpoint = patient(address, api_key_env="SOME_KEY")
    for asked in (endpoint.models, lambda: ask(endpoint)):
        with pytest.raises(ConfigError, match=r"^SOME_KEY holds a character that no key has") as refused:
            asked()
        assert "sk-pl" not in "".join(traceback.format_exception(refused.value))


def said_by(head: str, body: str, asked: Callable[[str], Any]) -> str:
    """Return what is made of a server that says this to one request: the error with its causes, as a log has it."""
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        server.settimeout(10)
        asking = pool.submit(asked, f"http://127.0.0.1:{server.getsockname()[1]}")
        with server.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(f"{head}\r\nConnection: close\r\n\r\n{body}".encode())
        error = asking.exception() or asking.result()[0]
    assert isinstance(error, ConfigError | EngineError)
    return "".join(traceback.format_exception(error))


@pytest.mark.parametrize(
    ("head", "body"),
    [
        ("HTTP/1.1 401 No", json.dumps({"error": {"message": " " * 250 + f"your key {KEY} is wrong"}})),
        ("HTTP/1.1 400 No", f"<html>{KEY}"),
        (f"HTTP/1.1 403 No {KEY}", ""),
        (f"HTTP/1.1 {KEY}", ""),
        (f"HTTP/1.1 307 Go\r\nLocation: https://elsewhere/?key={KEY}", ""),
        ("HTTP/1.1 200 OK\r\nContent-Type: application/json", '{"' + "x" * 60 + KEY),
    ],
)
def test_a_key_that_a_server_repeats_is_in_no_message(monkeypatch: pytest.MonkeyPatch, head: str, body: str) -> None:
    monkeypatch.setenv("SOME_KEY", f"{KEY}\n")
    settings: dict[str, Any] = {"api_key_env": "SOME_KEY", "max_attempts": 1}
    for asked in (lambda at: patient(at, **settings).models(), lambda at: ask(patient(at, **settings))):
        assert "sk-pl" not in said_by(head, body, asked)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_the_place_is_named(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("SOME_KEY", KEY)
    head = f"HTTP/1.1 {status} Go\r\nLocation: {address}/v1/models"
    for asked in (lambda at: patient(at, api_key_env="SOME_KEY").models(), lambda at: ask(patient(at))):
        said = said_by(head, "", asked)
        assert f"redirects to {address}/v1/models, which is not followed: set the address" in said
    assert not provider.requests
    assert not provider.num_asked_for_models


@pytest.mark.parametrize("fault", ["429", "500", "half"])
def test_a_question_is_asked_again_of_a_server_that_has_answered_before(
    provider: Provider, address: str, fault: str
) -> None:
    endpoint = patient(address)
    provider.model_faults = [fault]
    with pytest.raises(ConfigError, match=address):
        endpoint.models()
    assert provider.num_asked_for_models == 1, "its address may be wrong, so a person hears of it at once"
    provider.model_faults = ["500", fault]
    ask(endpoint)
    assert list(endpoint.models()) == [MODEL]
    assert provider.num_asked_for_models == 4


def test_a_key_that_is_missing_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match=f"{address}.*SOME_KEY"):
        patient(address, api_key_env="SOME_KEY").models()


def test_an_address_where_nothing_listens_is_named_before_the_first_episode() -> None:
    address = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match=rf"no server answers at {address}.*start it"):
        Endpoint(address=address).models()


def test_passwords_of_netrc_are_no_business_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("SOME_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    [error] = ask(patient(f"https://127.0.0.1:{free_port()}", api_key_env="SOME_KEY", max_attempts=1))
    assert isinstance(error, EngineError), repr(error)


def test_a_proxy_of_the_environment_is_asked_for_what_is_far(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address)
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    [error] = ask(patient("https://far.example", max_attempts=1))
    assert "ClientHttpProxyError" in str(error), "a provider is no proxy, but it was asked to be one"
    with pytest.raises(ConfigError, match=r"no server answers at https://far\.example \(404, message='Not Found'"):
        patient("https://far.example").models()
    [answer] = ask(patient(address))
    assert answer["choices"], "a server of one's own is asked without one"


def test_the_password_of_a_proxy_is_in_no_message(
    provider: Provider, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", address.replace("//", "//alice:hunter%402@"))
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    [error] = ask(patient("https://far.example", max_attempts=1))
    assert "ClientHttpProxyError" in str(error)
    assert not any(word in repr(error) for word in ("alice", "hunter"))
    with pytest.raises(
        ConfigError, match=r"no server answers at https://far\.example \(404, message='Not Found'"
    ) as told:
        patient("https://far.example").models()
    assert not any(word in repr(told.value) for word in ("alice", "hunter"))


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("max_requests_per_s", [0, -1, math.nan], "above 0, or null for no limit"),
        ("timeout_s", [0, -1, math.nan], "above 0, or inf for no limit"),
        ("max_attempts", [0, -1], "at least 1"),
        ("first_pause_s", [-1, math.nan, math.inf], "at least 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(name: str, values: list[float], wanted: str) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^endpoint\.{name} is {value}; it must be {wanted}\.$"):
            patient("http://host:1", **{name: value})


def test_an_endless_time_out_is_none(address: str) -> None:
    [answer] = ask(patient(address, timeout_s=math.inf))
    assert answer["choices"]


def test_an_address_that_is_none_is_named() -> None:
    with pytest.raises(ConfigError, match=r"no server answers at http://HOST:PORT \(.*: start it, or fix the address"):
        Endpoint(address="http://HOST:PORT").models()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("SSH-2.0\r\n", r"no server answers at {} \(400, .*SSH-2.0.*\): start it, or fix the address"),
        (HTTP + "[]", "{}/v1/models does not list served models: fix the address"),
        (HTTP + '{"data": [{"name": "a"}]}', "{}/v1/models does not list served models: fix the address"),
    ],
)
def test_a_server_of_something_else_is_named(answer: str, sentence: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        asking = pool.submit(Endpoint(address=address).models)
        with server.accept()[0] as connection:
            connection.recv(4096)
            connection.sendall(answer.encode())
        with pytest.raises(ConfigError, match=sentence.format(address)):
            asking.result()


def test_an_address_may_end_as_the_protocols_paths_do() -> None:
    assert Endpoint(address="http://host:1/v1/").address == "http://host:1"
    with pytest.raises(ConfigError, match=r"host:1.*http://HOST:PORT"):
        Endpoint(address="host:1")


@pytest.mark.parametrize(("path", "base"), [("", "/v1"), ("/v1/", "/v1"), ("/v1beta/openai", "/v1beta/openai")])
def test_a_path_of_an_address_stands_where_that_of_the_protocol_would(
    provider: Provider, address: str, path: str, base: str
) -> None:
    provider.answers = {f"{base}/chat/completions": chat_answer}
    [answer] = ask(patient(address + path))
    assert answer["choices"]
    assert provider.requests[0][0] == f"{base}/chat/completions"
