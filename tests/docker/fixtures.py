"""A Docker daemon of the tests' own, and an image of this machine's programs. Loaded by `tests/conftest.py`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

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
    with served("dockerd", "docker.io", tmp_path_factory.mktemp("dockerd")) as address:
        yield address


@pytest.fixture(scope="session")
def docker_image(docker_host: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the name of an image with `python3` and `sh`."""
    return imported(docker_host, tmp_path_factory.mktemp("imported"))


@pytest.fixture
def docker(docker_host: str, docker_image: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the Docker client of a test to the daemon; return the name of its image."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    return docker_image


@pytest.fixture(scope="session")
def podman_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """Let podman serve the same interface; return the address of its socket and the name of an image."""
    # It takes no path of more than 50 characters, as those of the tests are.
    with TemporaryDirectory(prefix="podman") as folder, served("podman", "podman", Path(folder)) as address:
        yield address, imported(address, tmp_path_factory.mktemp("imported"))


@pytest.fixture
def podman(podman_host: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Point the Docker client of a test to podman; return the name of its image."""
    monkeypatch.setenv("DOCKER_HOST", podman_host[0])
    return podman_host[1]


@contextmanager
def served(program: str, package: str, folder: Path) -> Iterator[str]:
    """Run a daemon; give the address of its socket."""
    if shutil.which(program) is None or os.getuid() != 0:
        pytest.skip(f"needs {program} (package {package}) and root")
    address = f"unix://{folder}/{program.removesuffix('d')}.sock"
    with (folder / "log").open("wb") as log:
        command = [HERE / f"start_{program}.sh", folder]
        daemon = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: daemon.poll() is not None or _answers(address))
        assert daemon.poll() is None, (folder / "log").read_text()
        yield address
    finally:
        daemon.terminate()
        daemon.wait(60)
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in (place for place in mounted if place.startswith(str(folder))):  # which podman leaves
            subprocess.run(["umount", "-l", place], check=True)


def imported(address: str, folder: Path) -> str:
    """Make an image of this machine's programs; return its name."""
    command = [HERE / "make_image.sh", folder, sys.executable, IMAGE]
    subprocess.run(command, check=True, env={**os.environ, "DOCKER_HOST": address})
    return IMAGE


def _answers(address: str) -> bool:
    asked = ["docker", "-H", address, "version"]
    return subprocess.run(asked, capture_output=True, timeout=120, check=False).returncode == 0
