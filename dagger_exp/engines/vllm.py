"""Tokens from a vLLM server, whose weights follow the training.

How they reach it stands in `vllm_weights`; a probe holds its log-probabilities against the trainer's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from dagger_exp.engines.endpoint import Endpoint
from dagger_exp.engines.prompt_logprobs import generation_of, score_at, understood
from dagger_exp.engines.vllm_probe import Probe
from dagger_exp.engines.vllm_server import RunningServer, VllmServer, check_served
from dagger_exp.engines.vllm_weights import BASE, TRANSFERS, Adapters, Reloading, Servable, Transfer, Way, commanded
from dagger_exp.errors import ConfigError, DriftError, EngineError
from dagger_exp.protocols import Generation, Sampling, Scores
from dagger_exp.seeding import draw
from dagger_exp.types import Key

CONFIRM_TIMEOUT_S = 120.0
AS_IT_IS = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""A model's own `generation_config` would change the distribution that is trained."""


class VllmEngine:
    """Generates and scores with vLLM.

    Args:
        student: what is served.
        end_id: token id that ends a message.
        folder: for weights on their way to the server, and its log.
        server: how one is started, where no addresses are given.
        addresses: of servers that run already; an episode stays with one of them.
        endpoint: makes the connection to an address.
        weights: how all weights reach the server: `disk`, `nccl` or `ipc` (see `Transfer`, not run); an adapter is
            always saved.
        sleeps: whether the server leaves the device to the trainer between collections.
        probe_tolerance: largest mean difference of the log-probabilities of server and trainer, in nats.

    Raises:
        ConfigError: there is no such way for the weights, or not for these.
    """

    id = "vllm"
    is_lock_step = False

    def __init__(
        self,
        *,
        student: Servable,
        end_id: int,
        folder: Path,
        server: VllmServer,
        addresses: Sequence[str] | None = None,
        endpoint: Callable[..., Endpoint] = Endpoint,
        weights: str = "disk",
        sleeps: bool = False,
        probe_tolerance: float = 0.15,
    ) -> None:
        self.student, self.end_id, self.folder = student, end_id, folder
        self.server, self.sleeps, self.probe = server, sleeps, Probe(probe_tolerance)
        self._make_endpoint = endpoint
        self.endpoints = [endpoint(address=address) for address in addresses or ()]
        self.way, self.transfer = self._way(weights), weights if weights in TRANSFERS else None
        self.version = -1
        self._num_restored, self._in_doubt = 0, dict[str, asyncio.Lock]()
        self._running: RunningServer | None = None
        self.alias = f"{BASE}-{secrets.token_hex(4)}"  # no other run's server knows it
        self._is_asleep = sleeps and bool(addresses)  # after a run that was killed while it trained

    @property
    def name(self) -> str:
        """Under which requests ask for the weights."""
        return self.way.name

    @property
    def address(self) -> str:
        return ", ".join(endpoint.address for endpoint in self.endpoints)

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        """Return a response. Its draw has a seed of its own, but a GPU's sums depend on the batch it met."""
        version, key = self.version, sampling.key or Key(0, 0, "", 0)
        endpoint = self.endpoints[key.episode_index % len(self.endpoints)]  # always the same, for its prefix cache
        answer = await self._complete(
            endpoint,
            prompt=list(prompt_ids),
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            **AS_IT_IS,
            seed=draw(key, "sampling") % 2**31,
            logprobs=0,
            return_token_ids=True,
            skip_special_tokens=False,
            stop_token_ids=[self.end_id],
        )
        with understood(endpoint):
            return generation_of(endpoint, answer["choices"][0], version)

    async def score(self, token_ids: Sequence[int], num_top: int = 0) -> Scores:
        """Return the log-probabilities of given tokens under the weights that are served."""
        return await self._score(self.endpoints[0], token_ids, num_top)

    async def _score(self, endpoint: Endpoint, token_ids: Sequence[int], num_top: int) -> Scores:
        return await score_at(endpoint, self.name, token_ids, num_top, cache_salt=self._salt)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Keep connections to all servers open while episodes are played."""
        self._in_doubt = {endpoint.address: asyncio.Lock() for endpoint in self.endpoints}  # of this event loop
        async with AsyncExitStack() as stack:
            for endpoint in self.endpoints:
                await stack.enter_async_context(endpoint.connected())
            yield

    async def confirm(self) -> None:
        """Look whether all servers still have the weights, so that what they have answered is of those.

        One that does not answer in time is looked at again before it does.

        Raises:
            DriftError: one has others; an adapter's name says of which an answer is.
        """
        if self.probe.ids and self.name == BASE:
            await asyncio.gather(*map(self._confirm, self.endpoints))

    async def _confirm(self, endpoint: Endpoint) -> None:
        try:
            await asyncio.wait_for(self._restore(endpoint, is_asked=True), CONFIRM_TIMEOUT_S)
        except (EngineError, TimeoutError) as error:
            if isinstance(error, DriftError):
                raise
            logging.getLogger(__name__).warning("the weights of %s are not confirmed: %s", endpoint.address, error)

    def load_weights(self, version: int, weights: Any) -> None:
        """Serve these weights under this version.

        Args:
            version: of the policy; the same one again does nothing.
            weights: the live module that trains.

        Raises:
            ConfigError: the server cannot serve this student, or tells log-probabilities of something else.
            EngineError: it refuses the weights, or its log-probabilities are not the trainer's afterwards.
        """
        if self.version < 0:
            self._begin()
        try:
            asyncio.run(self._update(version, weights))
        except DriftError:
            if self._running is None or not isinstance(self.way, Reloading):
                raise
            self.close()  # as on CPUs, whose kernels keep a copy of the weights in a form of their own
            self._serve(str(self.way.folder))
            asyncio.run(self._update(version, weights))

    def rest(self) -> None:
        """Let the server sleep, so that the trainer has the device."""
        if self.sleeps and self.endpoints and not self._is_asleep:
            asyncio.run(self._sleep())

    def close(self) -> None:
        """End the server that was started here."""
        if self._running is not None:
            self._running.stop()
            self._running = None

    def command(self, weights: str, *aliases: str) -> list[str]:
        """Return the line that starts a server for this student with weights of a folder or of the hub."""
        return self.server.command(
            weights,
            name=BASE,
            aliases=aliases,
            max_context_tokens=self.student.max_context_tokens,
            lora_rank=self.student.lora_rank,
            transfer=self.transfer,
            sleeps=self.sleeps,
        )

    def _way(self, weights: str) -> Way:
        if weights not in ("disk", *TRANSFERS):
            raise ConfigError(f"engine.weights is {weights!r}; choose one of disk, {', '.join(TRANSFERS)}.")
        if self.student.lora_rank is None:
            return Transfer(weights) if weights in TRANSFERS else Reloading(self.student, self.folder / "weights")
        if weights in TRANSFERS:
            raise ConfigError(
                f"engine.weights={weights} sends all weights, and this student trains an adapter: set "
                "engine.weights=disk or student.finetuning=full."
            )
        return Adapters(self.folder / "adapters", self.student.lora_rank)

    def _begin(self) -> None:
        """Start a server where none is given, and check what all of them serve."""
        if isinstance(self.way, Transfer):
            self.way.check()
        if not self.endpoints:
            if self.student.source is None:
                self.student.save_base(self.folder / "base")
            self._serve(self.student.source or str(self.folder / "base"))
        for endpoint in self.endpoints:
            check_served(endpoint, BASE, self.student.max_context_tokens)

    def _serve(self, weights: str) -> None:
        self._running = self.server.start(self.command(weights, self.alias), self.folder / "vllm.log")
        self.endpoints = [self._make_endpoint(address=self._running.address)]
        if self.alias not in self.endpoints[0].models():  # ours has come second to a port, and will end
            raise ConfigError(
                f"another server answers at {self._running.address}: set engine.server.port to another port, or to "
                "null for a free one."
            )

    async def _sleep(self) -> None:
        async with self.connected():
            await self._everywhere("/sleep?level=1", {})
        self._is_asleep = True

    async def _update(self, version: int, weights: Any) -> None:
        async with self.connected():
            if self._is_asleep:
                torch.cuda.empty_cache()  # what the trainer does not use now, the server will
                await self._everywhere("/wake_up", {})
                self._is_asleep = False
            if version != self.version:
                await self.way.send(version, weights, self.endpoints)
                self.version = version
            self.probe.take(weights, version)
            for endpoint in self.endpoints:
                await self._probe(endpoint)
                await self._check_draw(endpoint)

    async def _probe(self, endpoint: Endpoint) -> None:
        num_failures = endpoint.num_failures
        scores = await self._score(endpoint, self.probe.ids, 0)
        self.probe.compare(endpoint, scores.logprobs, num_failures, self.version)

    async def _check_draw(self, endpoint: Endpoint) -> None:
        """Look whether a log-probability is of what a token was drawn from: where one alone is allowed, it is 0."""
        only = {"allowed_token_ids": self.probe.ids[:1], "max_tokens": 1, "logprobs": 0, "return_token_ids": True}
        answer = await self._answer(endpoint, {"prompt": self.probe.ids, **only})
        with understood(endpoint):
            [logprob] = generation_of(endpoint, answer["choices"][0], self.version).logprobs
        if not logprob >= -self.probe.tolerance:
            raise ConfigError(
                f"{endpoint.address} tells log-probabilities of before temperature and top_p: start it with "
                "--logprobs-mode processed_logprobs, as in the line that dagger-serve prints."
            )

    async def _complete(self, endpoint: Endpoint, **body: Any) -> dict[str, Any]:
        """Return an answer of the weights that were sent last."""
        while True:
            num_restored = self._num_restored
            answer = await self._answer(endpoint, body)
            if self.name == BASE:  # an adapter's name says of which weights an answer is
                await self._restore(endpoint)
            if num_restored == self._num_restored:
                return answer

    async def _restore(self, endpoint: Endpoint, *, is_asked: bool = False) -> None:
        """Send the weights to a server again that was started again: it does not say so, and has its first ones.

        With `is_asked` it is looked at also where no request has failed, so that it cannot have been.
        """
        async with self._in_doubt[endpoint.address]:  # a server that hangs holds up no other's answers
            if not (is_asked or self.probe.is_due(endpoint)):
                return
            try:
                await self._probe(endpoint)
            except DriftError:
                if not self.probe.is_due(endpoint):
                    raise
                try:
                    await self.way.send_again(endpoint)
                finally:  # also where it is cut or refused: it may have been taken, and answers may be of either
                    self._num_restored += 1
                await self._probe(endpoint)

    async def _answer(self, endpoint: Endpoint, body: dict[str, Any]) -> dict[str, Any]:
        request = {"model": self.name, "cache_salt": self._salt, **body}
        try:
            return await endpoint.post("/v1/completions", request)
        except EngineError as error:
            if self.name == BASE or "does not exist" not in str(error):
                raise
        await self.way.send_again(endpoint)  # a server that was started again has forgotten its adapters
        return await endpoint.post("/v1/completions", request)

    @property
    def _salt(self) -> str:
        """Keep a prefix that other weights have computed out of a request."""
        return f"{self.version} {self.name} {self._num_restored}"

    async def _everywhere(self, path: str, body: dict[str, Any]) -> None:
        await asyncio.gather(*(commanded(endpoint, path, body) for endpoint in self.endpoints))
