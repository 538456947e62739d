"""One OpenAI-compatible server: requests over open connections, at a shared pace, with retries.

A failure that may pass is retried after a growing pause: 429, 5xx, a time-out, a broken connection, a cut answer. Each
reason is logged once. A `Retry-After` holds all requests to the server, and a 429 slows all of them down. Any other
failure, such as a spent quota, is an `EngineError` that names the address. No redirect is followed, and no message
shows the key. aiohttp sends the requests, because httpx slows down with the square of the open connections.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import os
import random
import re
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec

from dagger_exp.engines import refusals
from dagger_exp.engines.refusals import MAX_PAUSE_S, MissingError, Pace, SilentError, TransientError
from dagger_exp.errors import ConfigError, ContextError, EngineError, check_at_least

CHECK_TIMEOUT_S = 20.0
KEPT_S = 4.0
"""How long an idle connection is kept: vLLM closes it after 5 s, and a request sent at that moment is lost."""
ANSWERS_PER_PASS = 16
"""Answers handed on in one pass of the event loop. With all of a thousand in one pass, the request that follows the
first of them would be sent after the last one had been processed, and the server would be idle meanwhile."""
MAX_MESSAGE_CHARS = 300
REDIRECTS = range(300, 400)
USER = re.compile(r"(?<=://)[^/@\s]+@")
VARYING = re.compile(r"(?<!\S)(?<!answers )\S*\d\S*")
"""The words that differ between two messages with the same reason, such as a request's number; not the status."""


class Endpoint:
    """A server at an address.

    Args:
        address: such as `http://host:8000`, whose paths are below `/v1`; one with a path has them below that path.
        api_key_env: name of the environment variable that holds the key; the key itself is in no config.
        timeout_s: of one request; infinity for no limit.
        max_attempts: how often a request is tried in all.
        first_pause_s: longest pause before the second attempt; it doubles with each attempt, up to a minute.
        max_requests_per_s: shared by all requests; None for no limit.

    Attributes:
        num_failures: attempts that failed or were cancelled; the server may have been restarted since.
    """

    def __init__(
        self,
        *,
        address: str,
        api_key_env: str | None = None,
        timeout_s: float = 300.0,
        max_attempts: int = 8,
        first_pause_s: float = 0.5,
        max_requests_per_s: float | None = None,
    ) -> None:
        if not str(address).startswith(("http://", "https://")):  # a list of addresses may hold anything
            raise ConfigError(f"the address {address!r} is not valid: write it as http://HOST:PORT.")
        check_at_least(1, "endpoint", max_attempts=max_attempts)
        check_at_least(0, "endpoint", first_pause_s=first_pause_s)
        for name, value, without in (
            ("timeout_s", timeout_s, "inf"),
            ("max_requests_per_s", max_requests_per_s, "null"),
        ):
            if value is not None and not value > 0:
                raise ConfigError(f"endpoint.{name} is {value}; it must be above 0, or {without} for no limit.")
        given = address.rstrip("/")
        self._base = given if given.count("/") > 2 else f"{given}/v1"
        self.address = self._base.removesuffix("/v1")
        self.api_key_env, self.timeout_s, self.max_attempts = api_key_env, timeout_s, max_attempts
        self.first_pause_s, self.max_requests_per_s = first_pause_s, max_requests_per_s
        self.num_failures, self._has_answered = 0, False
        self._logged: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections open while requests are made."""
        self._pace = Pace(self.max_requests_per_s)
        self._passing = asyncio.Semaphore(ANSWERS_PER_PASS)
        try:
            async with self._new_session(self.timeout_s) as self._session:
                yield
        finally:
            self._session = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to a request.

        Raises:
            ContextError: the prompt is too long for the model.
            EngineError: the server refuses the request, or all attempts failed; the message has each reason once.
        """
        data = _packed(body)

        async def ask() -> dict[str, Any]:
            try:
                return await self._post(path, data)
            except (TransientError, asyncio.CancelledError):
                self.num_failures += 1
                raise

        return await self._retried(ask, TransientError, self.max_attempts)

    async def get(self, path: str) -> dict[str, Any]:
        """Return the answer to a question about the server, over a connection of its own.

        A server that has never answered is asked only once, because the address may be wrong.

        Raises:
            SilentError: the server does not answer, or fails.
            MissingError: the server has nothing at this path.
            ConfigError: the server refuses the question.
        """
        return await self._retried(lambda: self._get(path), SilentError, self.max_attempts if self._has_answered else 1)

    def models(self) -> dict[str, dict[str, Any]]:
        """Return the description of each served model by its name.

        Raises:
            ConfigError: the server does not answer, refuses the question, or is no server of models.
        """
        told = asyncio.run(self.get("/v1/models"))
        try:
            return {card["id"]: card for card in told["data"] or ()}
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._url('/v1/models')} does not list served models: fix the address, or its server."
            ) from error

    def _new_session(self, timeout_s: float) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S),
            timeout=aiohttp.ClientTimeout(total=timeout_s if math.isfinite(timeout_s) else None),
            headers=self._headers(),
            proxy=_proxy(self.address),
        )

    async def _retried(
        self, ask: Callable[[], Awaitable[dict[str, Any]]], passing: type[Exception], max_attempts: int
    ) -> dict[str, Any]:
        """Ask again after each failure that may pass, with a random pause that grows; the last error has each reason.

        This is on the path of every request, for which tenacity takes as long as everything else here together.
        """
        reasons = list[str]()
        for attempt in itertools.count():
            try:
                return await ask()
            except passing as error:
                reasons.append(str(error))
            if len(reasons) == max_attempts:
                break
            self._log_retry(reasons[-1])
            await asyncio.sleep(random.uniform(0, min(self.first_pause_s * 2**attempt, MAX_PAUSE_S)))
        raise passing("; before that: ".join(dict.fromkeys([reasons[-1], *reasons])))

    def _log_retry(self, said: str) -> None:
        """Log why a request is retried, once for each reason."""
        if (reason := VARYING.sub("", said)) not in self._logged:
            self._logged.add(reason)
            logging.getLogger(__name__).warning("a request is retried: %s", said)

    async def _post(self, path: str, data: bytes) -> dict[str, Any]:
        if self._session is None:
            raise EngineError(f"{self.address} was asked outside of `connected()`.")
        began = await self._pace.begin()
        try:
            async with self._session.post(self._url(path), data=data, allow_redirects=False) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, OSError) as error:  # a `TimeoutError` is one of the last
            said = self._masked(str(error)) or f"no answer within {self.timeout_s:g} s"
            raise TransientError(f"{self.address}: {type(error).__name__}: {said}") from None
        async with self._passing:
            await asyncio.sleep(0)
        self._has_answered = True
        told = self._read(path, answer, body) if answer.status == 200 else {}
        status = refusals.status_within(told) if answer.status == 200 else answer.status
        if status is None:
            self._pace.speed_up(began)
            return told
        if status == 429:
            self._pace.slow_down(began)
        raise self._refusal(path, status, body.decode(errors="replace"), answer.headers)

    def _read(self, path: str, answer: aiohttp.ClientResponse, body: bytes) -> dict[str, Any]:
        """Return the JSON of a good answer; raises `TransientError` where it is not whole."""
        if answer.content_type != "application/json" and not path.endswith("/completions"):
            return {}  # "Success" or nothing: the status has said it
        try:
            told = json.loads(body)
        except ValueError as error:
            said = self._masked(body.decode(errors="replace"))[:80]
            raise TransientError(f"{self.address}: its answer is cut or no JSON: {said!r}") from error
        if refusals.is_aborted(told):
            raise TransientError(f"{self.address}: it gave up its answer, as a server does that is stopped")
        return told

    def _refusal(self, path: str, status: int, text: str, headers: Mapping[str, str]) -> EngineError | ContextError:
        """Return the error for a request that was not answered; hold all requests where the server asks for it."""
        if status in REDIRECTS:
            return EngineError(self._elsewhere(path, headers))
        said = f"{self.address} answers {status}: {self._masked(refusals.message(text))}"
        if refusals.is_too_long(text):
            return ContextError(said)
        if not refusals.may_pass(status, text):
            return EngineError(said)
        self._pace.hold(refusals.pause_s(headers.get("Retry-After", "0")))
        return TransientError(said)

    async def _get(self, path: str) -> dict[str, Any]:
        url = self._url(path)
        try:
            async with self._new_session(CHECK_TIMEOUT_S) as session, session.get(url, allow_redirects=False) as answer:
                told = await answer.json(content_type=None) if answer.status == 200 else {}
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = self._masked(str(error)) or f"no answer within {CHECK_TIMEOUT_S:g} s"
            raise SilentError(f"no server answers at {self.address} ({said}): start it, or fix the address.") from None
        if answer.status == 200:
            self._has_answered = True
            return told
        if answer.status in REDIRECTS:
            raise ConfigError(self._elsewhere(path, answer.headers))
        key = self.api_key_env or "the variable that api_key_env names"
        cure = f"put the right key into {key}" if answer.status in (401, 403) else "fix the address, or its server"
        passing = SilentError if refusals.may_pass(answer.status) else ConfigError
        kind = MissingError if answer.status == 404 else passing
        raise kind(f"{url} answers {answer.status} {self._masked(answer.reason or '')}: {cure}.")

    def _url(self, path: str) -> str:
        """Return the URL of a path, which is written as below a bare host."""
        return self._base + path.removeprefix("/v1") if path.startswith("/v1/") else self.address + path

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env is not None:
            if not self._key:
                raise ConfigError(f"the key for {self.address} is missing: set the variable {self.api_key_env}.")
            if not (self._key.isascii() and self._key.isprintable()):
                raise ConfigError(
                    f"{self.api_key_env} holds a character that no key has, such as a line break: set it anew."
                )
            headers["Authorization"] = f"Bearer {self._key}"
        return headers

    @property
    def _key(self) -> str:
        """The key, without the line break that a file ends with."""
        return os.environ.get(self.api_key_env or "", "").strip()

    def _masked(self, text: str) -> str:
        """Return a server's words in one line, without the key, which some servers repeat, and a proxy's password."""
        text = USER.sub("", text.replace(self._key, "***") if self._key else text)
        return " ".join(text.split())[:MAX_MESSAGE_CHARS]

    def _elsewhere(self, path: str, headers: Mapping[str, str]) -> str:
        target = self._masked(headers.get("Location", "another address"))
        return f"{self._url(path)} redirects to {target}, which is not followed: set the address of that server."


def _proxy(address: str) -> str | None:
    """Return the environment's proxy for an HTTPS server; aiohttp's own look-up would send ~/.netrc's passwords."""
    is_near = address.startswith("http://") or urllib.request.proxy_bypass(urlsplit(address).netloc)
    return None if is_near else urllib.request.getproxies().get("https")


def _packed(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON; it holds the whole episode, and the standard library takes ten times as long."""
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, TypeError):  # half of a surrogate pair, or a subclass of str
        return json.dumps(body).encode()
