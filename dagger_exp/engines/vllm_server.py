"""A vLLM server of our own: the line that starts it, its start, and an end that is certain."""

from __future__ import annotations

import ctypes
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.errors import ConfigError, EngineError

if TYPE_CHECKING:  # dagger-serve waits for no HTTP
    from dagger_exp.engines.endpoint import Endpoint

ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",  # an adapter for each policy version
    "VLLM_SERVER_DEV_MODE": "1",  # reloading weights, sleep; the server listens to this machine alone
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
PICKLES = "VLLM_ALLOW_INSECURE_SERIALIZATION"
"""Lets a server read pickles, and so whoever reaches it run anything: never set unasked."""
STOP_TIMEOUT_S = 30.0
PORT_TIMEOUT_S = 5.0
"""How long a port may be held by a server of ours that is just ending."""
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Past any proxy: the server is on this machine."""
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Of vLLM 0.32."""
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, kw_only=True)
class VllmServer:
    """How a server is started.

    Args:
        python: interpreter of the environment that has vLLM; None is this one.
        host: it listens to; the default lets in this machine alone.
        port: None takes a free one.
        dtype: of the weights, as vLLM names it.
        tensor_parallel_size: GPUs of one model.
        gpu_memory_utilization: share of a GPU that the server takes.
        start_timeout_s: until it must answer.
        arguments: more of `vllm serve`, as they are typed.
        environment: more variables of the process.
    """

    python: str | None = None
    host: str = "127.0.0.1"
    port: int | None = None
    dtype: str = "auto"
    tensor_parallel_size: int = 1
    gpu_memory_utilization: float = 0.9
    start_timeout_s: float = 1800.0
    arguments: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(
        self,
        model: str,
        *,
        name: str,
        aliases: Sequence[str] = (),
        max_context_tokens: int | None = None,
        lora_rank: int | None = None,
        transfer: str | None = None,
        sleeps: bool = False,
    ) -> list[str]:
        """Return the line that serves a model.

        Args:
            model: folder or hub name.
            name: under which requests ask for it.
            aliases: more names of it.
            max_context_tokens: longest prompt and response together; None as the model says.
            lora_rank: of the adapters that will come; None where none will.
            transfer: backend by which weights will come from GPU to GPU; None where none will.
            sleeps: whether the device is shared with the trainer.

        Raises:
            ConfigError: the transfer needs a variable that is not set.
        """
        if transfer == "ipc" and PICKLES not in self.environment:
            raise ConfigError(
                "engine.weights=ipc hands the server pickled handles, which it takes only where that is allowed: add "
                f"+engine.server.environment.{PICKLES}=1."
            )
        # Not the script `vllm`: it is broken in some builds, and belongs to one environment only.
        line = [self.python or sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        line += ["--served-model-name", name, *aliases, "--host", self.host, "--dtype", self.dtype]
        line += ["--port", str(self.port)] if self.port is not None else []
        line += ["--tensor-parallel-size", str(self.tensor_parallel_size)]
        line += ["--gpu-memory-utilization", str(self.gpu_memory_utilization)]
        line += ["--max-model-len", str(max_context_tokens)] if max_context_tokens else []
        line += (
            ["--enable-lora", "--max-lora-rank", str(served_rank(lora_rank)), "--max-loras", "2"] if lora_rank else []
        )
        line += ["--weight-transfer-config", json.dumps({"backend": transfer})] if transfer else []
        line += ["--enable-sleep-mode"] if sleeps else []
        # What a token was drawn with is its log-probability after the temperature.
        return [*line, "--enable-prefix-caching", "--logprobs-mode", "processed_logprobs", *map(str, self.arguments)]

    def shell_line(self, command: Sequence[str]) -> str:
        """Return a command as it is typed, with the variables that it needs."""
        variables = [f"{name}={shlex.quote(str(value))}" for name, value in self.variables().items()]
        return " ".join([*variables, shlex.join(command)])

    def start(self, command: Sequence[str], log: Path) -> RunningServer:
        """Start a server and wait until it answers.

        Raises:
            ConfigError: there is no vLLM in the environment that was named, or the port is taken.
            EngineError: it ended, or did not answer in time; the message names its log.
        """
        self.check_python()
        port = _port(self.host, self.port or 0)
        line = [*command, *([] if self.port is not None else ["--port", str(port)])]
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own arguments
                line,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self.variables()},
                start_new_session=True,  # Ctrl-C is ours to hear; we stop it
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, before any thread
            )
        running = RunningServer(process, f"http://{self.host}:{port}", log)
        try:
            running.wait_until_healthy(self.start_timeout_s)
        except BaseException:
            running.stop()
            raise
        return running

    def variables(self) -> dict[str, str]:
        """Return what is set for the server's process."""
        return {**ENVIRONMENT, **{name: str(value) for name, value in self.environment.items()}}

    def check_python(self) -> None:
        """Look whether there is a vLLM; raises `ConfigError`."""
        python = self.python or sys.executable
        found = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
        try:
            missing = subprocess.run([python, "-c", found], capture_output=True, check=False).returncode  # noqa: S603
        except OSError as error:
            raise ConfigError(f"engine.server.python is {python}, which does not run: {error.strerror}.") from error
        if missing:
            raise ConfigError(
                f'{python} has no vLLM: pip install "dagger-exp[vllm]", or name an environment that has it in '
                "engine.server.python (of engine=vllm), or give the addresses of servers that run."
            )


@dataclass(frozen=True)
class RunningServer:
    """A server that was started here.

    Args:
        process: the first of its process group.
        address: where it listens.
        log: what it says.
    """

    process: subprocess.Popen[bytes]
    address: str
    log: Path

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Wait until it answers; raises `EngineError`."""
        deadline = time.monotonic() + timeout_s
        while not self._is_healthy():
            if self.process.poll() is not None:
                raise EngineError(f"the vLLM server ended with code {self.process.returncode}: {self._last_error()}")
            if time.monotonic() > deadline:
                raise EngineError(f"the vLLM server did not answer within {timeout_s:g} s: see {self.log}.")
            time.sleep(0.2)

    def stop(self) -> None:
        """End the server and every process that it has started."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _is_healthy(self) -> bool:
        try:
            with DIRECT.open(f"{self.address}/health", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _last_error(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line for line in lines if "Error" in line] or lines or ["it said nothing"]
        return f"{errors[-1].strip()[-300:]} (see {self.log})"


def served_rank(rank: int) -> int:
    """Return the smallest rank that vLLM takes and an adapter of this one fits in."""
    return next((served for served in LORA_RANKS if served >= rank), rank)


def _die_with_parent() -> None:
    """Have Linux end the server when this process is killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _port(host: str, wanted: int) -> int:
    """Return a port to listen to, a free one for 0; raises `ConfigError` where it stays taken."""
    deadline = time.monotonic() + PORT_TIMEOUT_S
    while True:
        with socket.socket() as found, suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what only its last connections hold is free
            found.bind((host, wanted))
            return int(found.getsockname()[1])
        if time.monotonic() > deadline:
            raise ConfigError(
                f"a server cannot listen to {host}:{wanted}, as where another one does: set engine.server.port to "
                "another port, or to null for a free one."
            )
        time.sleep(0.2)


def check_served(endpoint: Endpoint, name: str, max_context_tokens: int) -> None:
    """Look at what a server serves before anything is asked of it.

    Raises:
        ConfigError: it is not what the line of `dagger-serve` starts, or reads less than the student may.
    """
    cards = endpoint.models()
    if name not in cards:
        names = ", ".join(cards)
        raise ConfigError(
            f"{endpoint.address} serves {names}, not {name}: start it with the line that dagger-serve prints."
        )
    length = cards[name].get("max_model_len")
    if length is not None and length < max_context_tokens:
        raise ConfigError(
            f"{endpoint.address} reads {length} tokens, but student.max_context_tokens is {max_context_tokens}: "
            "start it with a longer --max-model-len, or lower student.max_context_tokens."
        )
