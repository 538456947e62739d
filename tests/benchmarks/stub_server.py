"""A server that says the same to everybody, always after the same time.

    python tests/benchmarks/stub_server.py --answers answers.json --latency 1

`answers.json` maps a path to the JSON that is answered there: to a POST after the latency, to a GET at once. A GET of
`/stats` tells how much was asked and what that cost this process. It listens on 127.0.0.1 alone, prints its port, and
ends when its standard input is closed or when it was asked too often. HTTP is read by hand, about 25 us per request,
because a framework would be what is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

HEAD = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {size}\r\n\r\n"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


class Stub:
    """What all connections share: the answers and the counts.

    Args:
        answers: JSON by path.
        latency_s: between a request and its answer.
        max_requests: after which the server ends.
    """

    def __init__(self, answers: Mapping[str, Any], latency_s: float, max_requests: int) -> None:
        self.answers = {path.encode(): _packed(answer) for path, answer in answers.items()}
        self.latency_s, self.max_requests = latency_s, max_requests
        self.counts: dict[str, int] = {}
        self.num_waiting = self.most_waiting = self.num_connections = 0
        self.over = asyncio.Event()

    def asked(self, path: bytes) -> None:
        """Count a request."""
        name = path.decode()
        self.counts[name] = self.counts.get(name, 0) + 1
        self.num_waiting += 1
        self.most_waiting = max(self.most_waiting, self.num_waiting)
        if sum(self.counts.values()) >= self.max_requests:
            self.over.set()

    def stats(self) -> dict[str, Any]:
        """Return the counts since the last question, and begin new ones."""
        stats = {
            "requests": self.counts,
            "most_waiting": self.most_waiting,
            "connections": self.num_connections,
            "cpu_s": time.process_time(),
        }
        self.counts, self.most_waiting, self.num_connections = {}, self.num_waiting, 0
        return stats


class Connection(asyncio.Protocol):
    """One kept connection, with one request at a time."""

    def __init__(self, stub: Stub) -> None:
        self.stub, self.buffer = stub, b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.stub.num_connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def data_received(self, data: bytes) -> None:
        """Answer what has come whole."""
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            _, _, length = head.partition(b"\r\ncontent-length:")
            size = end + 4 + int(length.split(b"\r\n", 1)[0] or 0)
            if len(self.buffer) < size:
                return
            method, path, _ = self.buffer[:end].split(b" ", 2)
            self.buffer = self.buffer[size:]
            self._answer(method, path)

    def _answer(self, method: bytes, path: bytes) -> None:
        if method == b"GET":
            self._write(_packed(self.stub.stats()) if path == b"/stats" else self.stub.answers.get(path, NOT_FOUND))
            return
        self.stub.asked(path)
        later = asyncio.get_running_loop().call_later
        later(self.stub.latency_s, self._answer_late, self.stub.answers.get(path, NOT_FOUND))

    def _answer_late(self, answer: bytes) -> None:
        self.stub.num_waiting -= 1
        self._write(answer)

    def _write(self, answer: bytes) -> None:
        if self.transport is not None:
            self.transport.write(answer)


async def serve(stub: Stub) -> None:
    """Answer until the standard input is closed."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", 0, backlog=2048)
    print(server.sockets[0].getsockname()[1], flush=True)
    loop.add_reader(sys.stdin.fileno(), stub.over.set)
    await stub.over.wait()
    server.close()


def _packed(answer: Any) -> bytes:
    body = json.dumps(answer).encode()
    return HEAD.format(size=len(body)).encode() + body


async def _main(options: argparse.Namespace) -> None:
    answers = json.loads(options.answers.read_text())
    await serve(Stub(answers, options.latency, options.max_requests))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=Path, required=True)
    parser.add_argument("--latency", type=float, default=1.0)
    parser.add_argument("--max-requests", type=int, default=100_000)
    asyncio.run(_main(parser.parse_args()))
