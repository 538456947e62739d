"""Where a sandbox cannot be had, one sentence says what is missing and how it is mended."""

from __future__ import annotations

import asyncio
import gc
import io
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dagger_exp.errors import ConfigError, DaggerError, SandboxError
from dagger_exp.protocols import Execution, SandboxSpec
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.docker import DockerSandboxes
from dagger_exp.sandboxes.pool import Pool
from tests.provider import wait_until
from tests.sandboxes.conftest import SMALL

CHECK = """
from dagger_exp.errors import ConfigError
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.limits import Limits
try:
    BubblewrapSandboxes(run_id="tests", limits=Limits()).check()
except ConfigError as error:
    print(error)
"""
Import = Callable[..., str]


def bubblewrap() -> Pool:
    return BubblewrapSandboxes(run_id="tests", limits=SMALL, num_ready=0)


def of_docker(image: str | None = None) -> Pool:
    return DockerSandboxes(run_id="tests", limits=SMALL, num_ready=0, image=image)


async def run(pool: Pool, script: str, spec: SandboxSpec | None = None) -> Execution:
    async with pool.connected():
        sandbox = await pool.open(spec or SandboxSpec(), "3/a task/0")
        await sandbox.write_files({"written": b"here"})
        return await sandbox.exec(script, 20)


def refusal(pool: Pool, kind: type[DaggerError], spec: SandboxSpec | None = None) -> str:
    """Return the one sentence with which a pool refuses, to `check` or to `open`."""
    with pytest.raises(kind) as raised:
        pool.check() if kind is ConfigError else asyncio.run(run(pool, "true", spec))
    said = str(raised.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


def test_no_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "install the package bubblewrap" in refusal(bubblewrap(), ConfigError)
    assert "bwrap cannot be started: No such file" in refusal(bubblewrap(), SandboxError)


@pytest.mark.bubblewrap
def test_user_namespaces_are_forbidden() -> None:
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap")
    inside = "bwrap --dev-bind / / --unshare-user --uid 1234 --gid 1234 --disable-userns --".split()
    said = subprocess.run([*inside, sys.executable, "-c", CHECK], capture_output=True, text=True, check=True).stdout
    assert said.startswith("sandbox=bubblewrap cannot start a sandbox here (")
    assert "sysctl user.max_user_namespaces" in said
    assert said.count("\n") == 1


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the SDK leaves one that did not connect
@pytest.mark.parametrize("address", ["unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"])
def test_no_docker_daemon(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("DOCKER_HOST", address)
    for kind in (ConfigError, SandboxError):
        assert refusal(of_docker("any"), kind).startswith("no Docker daemon answers: start one")
    gc.collect()  # while the warning is ignored


@pytest.fixture
def imported(docker: str, image_root: Path) -> Import:
    """Return what makes an image of a folder, with the folder `/work` where it is wanted."""

    def make(name: str, *changes: str, root: Path = image_root, has_work: bool = True) -> str:
        with io.BytesIO() as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(root, ".", filter=lambda one: one if has_work or one.name != "./work" else None)
            options = [word for change in changes for word in ("-c", change)]
            command = ["docker", "import", *options, "-", name]
            subprocess.run(command, input=packed.getvalue(), check=True, capture_output=True, timeout=600)
        return name

    return make


@pytest.mark.docker
def test_an_image_that_is_missing(docker: str) -> None:
    assert refusal(of_docker("absent"), ConfigError).startswith("there is no image absent: docker pull absent, or ")
    said = refusal(of_docker(docker), SandboxError, SandboxSpec(image="absent"))
    assert said.startswith("there is no image absent: docker pull absent, or ")
    assert "no image: give sandbox.image=NAME" in refusal(of_docker(), SandboxError)


@pytest.mark.docker
def test_an_image_without_python(imported: Import, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    image = imported("dagger-exp-tests-bare", root=tmp_path)
    assert '"python3": executable file not found' in refusal(of_docker(image), SandboxError)
    assert subprocess.run(["docker", "ps", "-aq"], capture_output=True, check=True, timeout=600).stdout == b""


@pytest.mark.docker
@pytest.mark.parametrize(("user", "has_work"), [("1000", True), ("1000:1000", True), ("1000", False), ("agent", False)])
def test_an_image_with_a_user_of_its_own(imported: Import, image_root: Path, user: str, has_work: bool) -> None:
    path = (image_root / "PATH").read_text()
    image = imported("dagger-exp-tests-user", f"ENV PATH={path}", f"USER {user}", has_work=has_work)
    done = asyncio.run(run(of_docker(image), "id -u; cat written; echo > mine && echo > /tmp/mine && echo both"))
    assert done.output == "1000\nhereboth\n"


@pytest.mark.docker
def test_an_image_whose_user_has_a_name_and_no_working_folder(imported: Import, image_root: Path) -> None:
    path = (image_root / "PATH").read_text()
    image = imported("dagger-exp-tests-named", f"ENV PATH={path}", "USER agent")
    try:
        done = asyncio.run(run(of_docker(image), "cat written"))
    except SandboxError as error:  # a daemon that keeps the mode of the image's own folder
        assert "name that by its number, as in USER 1000" in str(error)  # noqa: PT017 - either is right
    else:
        assert done.output == "here"


@pytest.mark.docker
def test_a_container_gets_the_name_of_its_episode(docker: str) -> None:
    def named() -> bool:
        listed = subprocess.run(["docker", "ps", "--format", "{{.Names}}"], capture_output=True, text=True, check=True)
        return listed.stdout.startswith("dagger-exp-tests-3-a-task-0-")

    async def act() -> None:
        pool = of_docker(docker)
        async with pool.connected():
            await pool.open(SandboxSpec(), "3/a task/0")
            await asyncio.to_thread(wait_until, named)

    asyncio.run(act())
