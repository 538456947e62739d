"""A stand-in for a provider of language models: the protocol of OpenAI and of vLLM, fixed answers, and faults on order.

    python -m tests.provider --port 8123 --fault-rate 0.2

It generates nothing: it is for what happens around generation. Faults are a pure function of the number of the request.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

from aiohttp import web

MODEL = "student"
FAULTS = ("500", "429", "timeout", "cut", "half", "abort")
HANG_S = 3.0
"""Longer than the time-outs of the tests that ask for faults."""
Answer = Callable[[dict[str, Any]], dict[str, Any]]


def chat_answer(body: dict[str, Any]) -> dict[str, Any]:
    """Return what a teacher says: always the same command."""
    return {
        "choices": [{"message": {"role": "assistant", "content": "test"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10 * len(body["messages"]), "completion_tokens": 2},
    }


def completion_answer(reply_ids: Sequence[int]) -> Answer:
    """Return what a vLLM server says to token ids: always the same tokens."""
    choice = {
        "token_ids": list(reply_ids),
        "logprobs": {"token_logprobs": [-0.5] * len(reply_ids)},
        "finish_reason": "stop",
    }
    return lambda body: {"choices": [choice]}


class Provider:
    """The server.

    Args:
        fault_rate: share of the requests for an answer that meet a fault.
        reply_ids: what a student's completion is.
        max_model_len: what the model is said to read.
        lists_models: whether it says which models it serves.
        chat: what a conversation is answered.
        limit_per_s: answers that it gives in a second; what is above is a 429.
    """

    def __init__(
        self,
        *,
        fault_rate: float = 0.0,
        reply_ids: Sequence[int] = (5, 2),
        max_model_len: int = 4096,
        lists_models: bool = True,
        chat: Answer = chat_answer,
        limit_per_s: float = math.inf,
    ) -> None:
        self.limit_per_s, self._is_full_until = limit_per_s, 0.0
        self.fault_rate, self.max_model_len = fault_rate, max_model_len
        self.lists_models, self.num_asked_for_models = lists_models, 0
        self.answers = {"/v1/chat/completions": chat, "/v1/completions": completion_answer(reply_ids)}
        self.requests: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        """Path, body and headers of each."""
        self.arrivals: list[float] = []
        """When each came, on the monotonic clock."""
        self.faults: list[str] = []
        """What is to happen to the next requests, before the rate is asked."""
        self.model_faults: list[str] = []
        """What is to happen to the next questions for the models."""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/health", self._models)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._post)
        return app

    async def _models(self, request: web.Request) -> web.StreamResponse:
        self.num_asked_for_models += 1
        if self.model_faults:
            return await self._fail(self.model_faults.pop(0), request)
        if not self.lists_models:
            raise web.HTTPNotFound
        return web.json_response({"data": [{"id": MODEL, "max_model_len": self.max_model_len}]})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read() or b"{}")
        self.arrivals.append(time.monotonic())
        self.requests.append((request.path, body, dict(request.headers)))
        if request.path.endswith("/completions") and request.path not in self.answers:
            raise web.HTTPNotFound
        if request.path not in self.answers:
            return web.Response(text="Success")
        fault = self.faults.pop(0) if self.faults else self._drawn_fault()
        if fault or self._is_full():
            return await self._fail(fault or "429", request)
        return web.json_response(self.answers[request.path](body))

    def _is_full(self) -> bool:
        now = time.monotonic()
        if now < self._is_full_until:
            return True
        self._is_full_until = max(self._is_full_until, now - 0.5) + 1 / self.limit_per_s  # half a second may be saved
        return False

    def _drawn_fault(self) -> str:
        digest = hashlib.blake2b(str(len(self.requests)).encode(), digest_size=4).digest()
        is_fault = int.from_bytes(digest[:2], "big") < self.fault_rate * 2**16
        return FAULTS[digest[2] % len(FAULTS)] if is_fault else ""

    async def _fail(self, fault: str, request: web.Request) -> web.StreamResponse:
        match fault:
            case "timeout":
                await asyncio.sleep(HANG_S)
            case "cut":
                assert request.transport is not None
                request.transport.abort()
            case "half":
                return web.Response(text='{"choices": [{"mess', content_type="application/json")
            case "abort":  # what vLLM has written when it is stopped
                message = {"role": "assistant", "content": "te"}
                choice = {"message": message, "token_ids": [5], "logprobs": {"token_logprobs": [-0.5]}}
                return web.json_response({"choices": [choice | {"finish_reason": "abort"}]})
            case "429" | "429-long":
                headers = {"Retry-After": "0.05" if fault == "429" else "1"}
                return web.json_response({"error": {"message": "slow"}}, status=429, headers=headers)
            case _ if fault.startswith("{"):
                return web.json_response(json.loads(fault), status=400)
        return web.json_response({"error": {"message": "broken"}}, status=500)


@contextmanager
def serving(provider: Provider) -> Iterator[str]:
    """Serve in a thread of this process; yields the address."""
    loop, port = asyncio.new_event_loop(), free_port()
    runner = web.AppRunner(provider.app(), shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


class Process:
    """The server as a process of its own, which can be killed and comes back at the same address."""

    def __init__(self, *arguments: str) -> None:
        self.port, self.arguments = free_port(), arguments
        self.address = f"http://127.0.0.1:{self.port}"
        self.process = self._start()

    def __enter__(self) -> Self:
        wait_until(self._answers)
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()

    def restart(self) -> None:
        """Kill it, and begin to start it again."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.provider", "--port", str(self.port), *self.arguments]
        return subprocess.Popen(command)

    def _answers(self) -> bool:
        with suppress(OSError), urllib.request.urlopen(f"{self.address}/health", timeout=1) as answer:
            return answer.status == 200
        return False


def wait_until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    """Look until something holds."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fault-rate", type=float, default=0.0)
    parser.add_argument("--reply-ids", type=int, nargs="+", default=[5, 2])
    given = parser.parse_args()
    provider = Provider(fault_rate=given.fault_rate, reply_ids=given.reply_ids)
    web.run_app(provider.app(), host="127.0.0.1", port=given.port, print=None, handle_signals=False)
