"""One OpenAI-compatible server: requests over kept connections, and what is done when it fails.

What may pass is tried again with a growing pause: 429, 5xx, time-outs, broken connections, answers that are cut; why is
logged. A `Retry-After` makes every request to the server wait, not only the one that was told, and a 429 slows all
down. Anything else, as a quota that is used up, is an `EngineError` that names the address. No redirect is followed and
no message shows the key. HTTP goes through aiohttp: httpx slows with the square of the open connections.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import math
import os
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import tenacity

from dagger_exp.engines import refusals
from dagger_exp.engines.pace import MAX_PAUSE_S, Pace
from dagger_exp.engines.proxies import proxies
from dagger_exp.engines.refusals import MissingError, SilentError, TransientError
from dagger_exp.errors import ConfigError, ContextError, EngineError, check_at_least

CHECK_TIMEOUT_S = 20.0
KEPT_S = 4.0
"""How long a connection is kept that nobody uses: vLLM closes it after 5 s, and a request that meets that is lost."""
MAX_MESSAGE_CHARS = 300
REDIRECTS = range(300, 400)
USER = re.compile(r"(?<=://)[^/@\s]+@")


class _Stays(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a redirect is an answer like any other that is not 200."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class Endpoint:
    """A server at an address.

    Args:
        address: as `http://host:8000`, which is asked below `/v1`; one with a path is asked below that path.
        api_key_env: name of the environment variable that holds its key; the key itself stands in no config.
        timeout_s: of one request; infinity for no limit.
        max_attempts: how often a request is tried in all.
        first_pause_s: before the second attempt, at most; it doubles up to a minute.
        max_requests_per_s: shared by all requests; None for no limit.

    Attributes:
        num_requests: that were sent, each attempt.
        num_failures: attempts that failed or were given up: the server may have been started again since.
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
        if not str(address).startswith(("http://", "https://")):  # a list of them may hold anything
            raise ConfigError(f"the address {address!r} is none: write it as http://HOST:PORT.")
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
        self.first_pause_s, self._pace = first_pause_s, Pace(max_requests_per_s)
        self.num_requests, self.num_failures, self._has_answered = 0, 0, False
        self._told: set[str] = set()
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections open while requests are made."""
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEPT_S)
        timeout = aiohttp.ClientTimeout(total=self.timeout_s if math.isfinite(self.timeout_s) else None)
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers(), proxy=proxies(self.address).get("https")
        ) as session:
            self._session = session
            self._pace.renew()
            try:
                yield
            finally:
                self._session = None

    async def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the server answers.

        Raises:
            ContextError: the server says that the prompt is too long for it.
            EngineError: it refuses the request, or has failed at every attempt; each way to fail is told, once.
        """
        data, failed = _packed(body), list[TransientError]()
        try:
            return await self._attempt(path, data, failed)
        except TransientError:  # most never come here: tenacity takes as long as half a request
            retrying = tenacity.AsyncRetrying(
                stop=tenacity.stop_after_attempt(self.max_attempts), **self._patience(TransientError)
            )

        async def attempt() -> dict[str, Any]:
            if retrying.statistics["attempt_number"] == 1:
                raise failed[0]  # the first one is over
            return await self._attempt(path, data, failed)

        try:
            return await retrying(attempt)
        except TransientError as error:
            raise TransientError("; before that: ".join(dict.fromkeys(map(str, [error, *failed])))) from None

    def get(self, path: str) -> dict[str, Any]:
        """Return what the server answers to a question before the first episode or between two rounds.

        A server that has never answered is not asked again: its address may be wrong.

        Raises:
            SilentError: nothing answers there, or it has failed.
            MissingError: it has nothing at this path.
            ConfigError: it does not let us in.
        """
        stop = tenacity.stop_after_attempt(self.max_attempts if self._has_answered else 1)
        return tenacity.Retrying(stop=stop, **self._patience(SilentError))(self._get, path)

    def _patience(self, passing: type[Exception]) -> dict[str, Any]:
        """Return how long tenacity waits before it tries again, and for what."""
        pause = tenacity.wait_random_exponential(multiplier=self.first_pause_s, max=MAX_PAUSE_S)
        retry = tenacity.retry_if_exception_type(passing)
        return {"retry": retry, "wait": pause, "reraise": True, "before_sleep": self._tell}

    def _tell(self, state: tenacity.RetryCallState) -> None:
        """Log why a request is tried again, once for each reason."""
        said = str(state.outcome and state.outcome.exception())
        if (kind := refusals.kind(said)) not in self._told:
            self._told.add(kind)
            logging.getLogger(__name__).warning("a request is tried again: %s", said)

    def _get(self, path: str) -> dict[str, Any]:
        request = urllib.request.Request(self._url(path), headers=self._headers())  # noqa: S310 - http, see above
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies(self.address)), _Stays)
            with opener.open(request, timeout=CHECK_TIMEOUT_S) as answer:
                told = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise self._closed(path, error) from None  # a log shows causes, and this one may hold the key
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = self._masked(str(getattr(error, "reason", error)))
            said = f"no server answers at {self.address} ({reason}): start it, or mend the address."
            raise SilentError(said) from None
        self._has_answered = True
        return told

    def models(self) -> dict[str, dict[str, Any]]:
        """Return what the server tells of the models that it serves, by their names.

        Raises:
            ConfigError: nothing answers there, it does not let us in, or it is a server of something else.
        """
        try:
            return {card["id"]: card for card in self.get("/v1/models")["data"] or ()}
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._url('/v1/models')} does not tell which models are served: mend the address, or its server."
            ) from error

    def _url(self, path: str) -> str:
        """Return where a path is, which is written as below a bare host."""
        return self._base + path.removeprefix("/v1") if path.startswith("/v1/") else self.address + path

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
        if self.api_key_env is not None:
            key = self._key
            if not key:
                raise ConfigError(f"the key for {self.address} is missing: set the variable {self.api_key_env}.")
            if not (key.isascii() and key.isprintable()):
                raise ConfigError(f"{self.api_key_env} holds what no key has, as a line break: set it anew.")
            headers["Authorization"] = f"Bearer {key}"
        return headers

    @property
    def _key(self) -> str:
        """The key, without the line break that a file ends with."""
        return os.environ.get(self.api_key_env or "", "").strip()

    def _masked(self, text: str) -> str:
        """Return what is said, in one line and without the key, which some servers repeat; it is not cut before.

        Nor is the password of a proxy told, which stands in its address.
        """
        key = self._key
        text = USER.sub("", text.replace(key, "***") if key else text)
        return " ".join(text.split())[:MAX_MESSAGE_CHARS]

    async def _attempt(self, path: str, data: bytes, failed: list[TransientError]) -> dict[str, Any]:
        """Return what the server answers; a failure that may pass is noted."""
        try:
            return await self._post(path, data)
        except (TransientError, asyncio.CancelledError) as error:
            self.num_failures += 1
            if isinstance(error, TransientError):
                failed.append(error)
            raise

    async def _post(self, path: str, data: bytes) -> dict[str, Any]:
        if self._session is None:
            raise EngineError(f"{self.address} was asked outside of `connected()`.")
        began = await self._pace.begin()
        self.num_requests += 1
        try:
            async with self._session.post(self._url(path), data=data, allow_redirects=False) as answer:
                text = await answer.read()
            self._has_answered = True
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            said = self._masked(str(error)) or f"no answer within {self.timeout_s:g} s"
            raise TransientError(f"{self.address}: {type(error).__name__}: {said}") from None
        told = self._read(path, answer, text) if answer.status == 200 else {}
        refused = refusals.status_within(told) if answer.status == 200 else answer.status
        if refused is not None:
            if refused == 429:
                self._pace.slow_down(began)
            raise self._refusal(path, refused, text.decode(errors="replace"), answer.headers)
        self._pace.quicken(began)
        return told

    def _read(self, path: str, answer: aiohttp.ClientResponse, text: bytes) -> dict[str, Any]:
        """Return what a good answer says; raises `TransientError` where it is not whole."""
        if answer.content_type != "application/json" and not path.endswith("/completions"):
            return {}  # "Success", or nothing: the status has said it
        try:
            told = json.loads(text)
        except ValueError as error:
            said = self._masked(text.decode(errors="replace"))[:80]
            raise TransientError(f"{self.address}: its answer is cut or no JSON: {said!r}") from error
        if b'"abort"' in text and refusals.is_given_up(told):
            raise TransientError(f"{self.address}: it gave up its answer, as one does that is stopped")
        return told

    def _refusal(self, path: str, status: int, text: str, headers: Mapping[str, str]) -> EngineError | ContextError:
        if status in REDIRECTS:
            return EngineError(self._elsewhere(path, headers.get("Location")))
        said = f"{self.address} answers {status}: {self._masked(refusals.message(text))}"
        if refusals.is_too_long(text):
            return ContextError(said)
        if refusals.may_pass(status) and not refusals.is_final(text):
            if (retry_after := headers.get("Retry-After")) is not None:
                self._pace.hold(retry_after)
            return TransientError(said)
        return EngineError(said)

    def _closed(self, path: str, error: urllib.error.HTTPError) -> ConfigError:
        """Return what a question before the first episode has met."""
        if error.code in REDIRECTS:
            return ConfigError(self._elsewhere(path, error.headers.get("Location")))
        said = f"{self._url(path)} answers {error.code} {self._masked(error.reason)}"
        key = self.api_key_env or "the variable that api_key_env names"
        mend = f"put the right key into {key}" if error.code in (401, 403) else "mend the address, or its server"
        kind = MissingError if error.code == 404 else SilentError if refusals.may_pass(error.code) else ConfigError
        return kind(f"{said}: {mend}.")

    def _elsewhere(self, path: str, location: str | None) -> str:
        place = self._masked(location or "another place")
        return f"{self._url(path)} points to {place}, where nothing is sent unasked: set the address of that server."


def _packed(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON; it holds the whole episode, which the standard library writes ten times slower."""
    try:
        return msgspec.json.encode(body)
    except (UnicodeEncodeError, TypeError):  # half a surrogate pair, a text of a kind of its own
        return json.dumps(body).encode()
