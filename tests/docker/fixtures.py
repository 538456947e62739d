"""A Docker daemon of the tests' own, and an image of this machine's programs. Loaded by `tests/conftest.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.provider import wait_until

HERE = Path(__file__).parent
IMAGE = "dagger-exp-tests"


@pytest.fixture(scope="session")
def image_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that is the file system of a container."""
    folder = tmp_path_factory.mktemp("image")
    subprocess.run([HERE / "make_image.sh", folder, sys.executable], check=True)
    return folder / "root"


@pytest.fixture(scope="session")
def docker_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a daemon, and return the address of its socket."""
    if shutil.which("dockerd") is None or os.getuid() != 0:
        pytest.skip("needs dockerd (package docker.io) and root")
    folder = tmp_path_factory.mktemp("dockerd")
    address = f"unix://{folder}/docker.sock"
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen([HERE / "start_dockerd.sh", folder], stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: daemon.poll() is not None or _answers(address))
        assert daemon.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        daemon.terminate()
        daemon.wait(60)


@pytest.fixture(scope="session")
def docker_image(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of an image with `python3` and `sh`."""
    command = [HERE / "make_image.sh", tmp_path_factory.mktemp("imported"), sys.executable, IMAGE]
    subprocess.run(command, check=True, env={**os.environ, "DOCKER_HOST": docker_host})
    return IMAGE


@pytest.fixture
def docker(docker_host: str, docker_image: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the Docker client of a test to the daemon; return the name of its image."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    return docker_image


def _answers(address: str) -> bool:
    asked = ["docker", "-H", address, "version"]
    return subprocess.run(asked, capture_output=True, timeout=20, check=False).returncode == 0
