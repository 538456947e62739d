"""A server of our own: it is started, found dead, ended, and does not outlive us. The program is a stand-in."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.engines import vllm_server
from dagger_exp.engines.vllm_server import VllmServer
from dagger_exp.errors import ConfigError, EngineError
from tests.provider import wait_until

STAND_IN = [sys.executable, "-m", "tests.provider"]
STARTS = """
import os, pathlib, sys
from dagger_exp.engines.vllm_server import VllmServer
running = VllmServer(python=sys.argv[1]).start({stand_in!r}, pathlib.Path(sys.argv[2]))
print(running.process.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def has_vllm(tmp_path: Path) -> str:
    """Return an interpreter that claims to have vLLM."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 0\n")
    script.chmod(0o755)
    return str(script)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


def test_a_server_is_started_answers_and_is_ended(has_vllm: str, tmp_path: Path) -> None:
    running = VllmServer(python=has_vllm).start(STAND_IN, tmp_path / "engine" / "vllm.log")
    assert running.address.startswith("http://127.0.0.1:")
    assert is_alive(running.process.pid)
    running.stop()
    assert not is_alive(running.process.pid)
    running.stop()  # once more does no harm


def test_a_server_that_dies_is_an_error_with_its_last_word(has_vllm: str, tmp_path: Path) -> None:
    line = [sys.executable, "-c", "raise ValueError('no such model')"]
    with pytest.raises(EngineError, match=r"ended with code 1: ValueError: no such model \(see .*vllm\.log\)"):
        VllmServer(python=has_vllm).start(line, tmp_path / "vllm.log")


def test_a_server_that_never_answers_is_given_up_and_ended(has_vllm: str, tmp_path: Path) -> None:
    line = [sys.executable, "-c", f"import os, time; print(os.getpid(), flush=True); time.sleep(60)  # {tmp_path}"]
    with pytest.raises(EngineError, match=r"did not answer within 0\.5 s"):
        VllmServer(python=has_vllm, start_timeout_s=0.5).start(line, tmp_path / "vllm.log")
    said = (tmp_path / "vllm.log").read_text().strip()
    assert not said or not is_alive(int(said))


def test_a_port_that_is_taken_is_named_before_anything_is_started(
    has_vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "PORT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"cannot listen to 127\.0\.0\.1:{port}, .*engine\.server\.port"):
            VllmServer(python=has_vllm, port=port).start(STAND_IN, tmp_path / "vllm.log")
    assert not (tmp_path / "vllm.log").exists()


def test_a_server_does_not_outlive_a_run_that_is_killed(has_vllm: str, tmp_path: Path) -> None:
    program = STARTS.format(stand_in=STAND_IN)
    command = [sys.executable, "-c", program, has_vllm, str(tmp_path / "vllm.log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        assert is_alive(server)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not is_alive(server))


def test_an_environment_without_vllm_is_named_with_the_mend(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dagger-exp\[vllm\].*server\.python.*addresses"):
        VllmServer().start(STAND_IN, tmp_path / "vllm.log")
    with pytest.raises(ConfigError, match=r"server\.python is /nowhere/python"):
        VllmServer(python="/nowhere/python").start(STAND_IN, tmp_path / "vllm.log")


def test_the_line_says_what_the_config_says() -> None:
    arguments: list[Any] = ["--enforce-eager", "--max-num-seqs", 8]  # a number, as it is typed
    server = VllmServer(python="py", port=8123, tensor_parallel_size=4, arguments=arguments)
    line = " ".join(server.command("folder", name="student", max_context_tokens=512, lora_rank=8, sleeps=True))
    for part in (
        "py -m vllm.entrypoints.openai.api_server --model folder --served-model-name student",
        "--port 8123 --tensor-parallel-size 4",
        "--max-model-len 512 --enable-lora --max-lora-rank 8",
        "--enable-sleep-mode",
        "--enforce-eager --max-num-seqs 8",
    ):
        assert part in line
    assert "--enable-lora" not in server.command("folder", name="student")
