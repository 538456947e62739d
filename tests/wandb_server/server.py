"""A W&B server on the loopback for the real client, which cannot tell: HTTP around what `backend` knows."""

from __future__ import annotations

import base64
import gzip
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self, cast

from tests.wandb_server.backend import Backend, RefusedError

KEY = "0123456789abcdef0123456789abcdef01234567"
AUTHORIZATION = f"Basic {base64.b64encode(f'api:{KEY}'.encode()).decode()}"


class Handler(BaseHTTPRequestHandler):
    """A connection of a client."""

    protocol_version = "HTTP/1.1"  # the client keeps its connections

    def do_POST(self) -> None:
        """GraphQL and the lines of a run; the client's telemetry is thrown away."""
        body = self._body()
        if self._is_out():
            return
        if self.path.startswith("/sdk/otel/"):
            self._send(200, {})
        elif self.headers.get("Authorization") != AUTHORIZATION:
            self._send(401, {"errors": [{"message": "invalid API key"}]})
        elif self.path == "/graphql":
            self._send(200, self._graphql(json.loads(body)))
        elif self.path.endswith("/file_stream"):
            self._send(200, self._stream(json.loads(body)))
        else:
            self._send(404, {})

    def do_PUT(self) -> None:
        """Store a file; its address is all that is needed, as with a signed one."""
        body = self._body()
        if self._server.refused_file and self.path.endswith(self._server.refused_file):
            self._send(500, {})
        elif not self._is_out():
            self._server.backend.storage[self.path] = body
            self._send(200, {})

    @property
    def _server(self) -> Server:
        return cast(Server, self.server)

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._server.lock:
            try:
                return {"data": self._server.backend.graphql(request["query"], request.get("variables") or {})}
            except RefusedError as error:
                return {"data": None, "errors": [{"message": str(error)}]}

    def _stream(self, request: dict[str, Any]) -> dict[str, Any]:
        _, _, entity, project, name, _ = self.path.split("/")
        with self._server.lock:
            self._server.backend.runs[entity, project, name].receive(request)
        return {}

    def _is_out(self) -> bool:
        """Answer as a server that has gone wrong, while the test wants it so: by an error, or not at all."""
        if not self._server.is_broken:
            return False
        if next(self._server.faults) == "error":
            self._send(500, {})
        else:
            self.close_connection = True
        return True

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _send(self, status: int, answer: dict[str, Any]) -> None:
        text = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def handle(self) -> None:
        """Serve the connection until the client drops it, in whatever way."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Serves in a thread while its context is open."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.backend = Backend(self.address)
        self.is_broken = False
        self.refused_file = ""
        self.faults = itertools.cycle(("error", "silence"))
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.shutdown()
        super().__exit__(kind, error, at)

    @contextmanager
    def broken(self) -> Iterator[None]:
        """Answer every request in a wrong way for a while."""
        self.is_broken = True
        yield
        self.is_broken = False

    @contextmanager
    def refusing(self, file: str) -> Iterator[None]:
        """Answer the upload of files of this name by an error for a while, and everything else as ever."""
        self.refused_file = file
        yield
        self.refused_file = ""
