"""Pools of every kind, small enough to be filled; each test holds them for every kind that can run here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.sandboxes.apptainer import ApptainerSandboxes
from dagger_exp.sandboxes.bubblewrap import BubblewrapSandboxes
from dagger_exp.sandboxes.docker import DockerSandboxes
from dagger_exp.sandboxes.limits import Limits
from dagger_exp.sandboxes.pool import Pool

SMALL = Limits(memory_mib=128, max_processes=48, cpu_s=20, file_mib=16, disk_mib=32, max_output_bytes=20_000)
STAND_IN = Path(__file__).with_name("apptainer_stand_in")
HARDENED = [
    pytest.param("bubblewrap", marks=pytest.mark.bubblewrap),
    pytest.param("docker", marks=pytest.mark.docker),
]
KINDS = [
    *HARDENED,
    pytest.param("podman", marks=pytest.mark.docker),
    pytest.param("apptainer", marks=pytest.mark.bubblewrap),
]
"""What bounds memory disks and processes of apptainer is its own, of which the stand-in has nothing; podman counts no
files."""
MakePool = Callable[..., Pool]


@pytest.fixture(params=KINDS)
def make_pool(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakePool:
    """Return what makes a pool of one kind."""
    kind: str = request.param
    made: dict[str, Any] = {"run_id": "tests", "limits": SMALL, "num_ready": 0}
    if kind in ("docker", "podman"):
        made["image"] = request.getfixturevalue(kind)
        return lambda **given: DockerSandboxes(**{**made, **given})
    if shutil.which("bwrap") is None:
        pytest.skip("needs the package bubblewrap")
    if kind == "bubblewrap":
        return lambda **given: BubblewrapSandboxes(**{**made, **given})
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").symlink_to(STAND_IN)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    made["image"] = str(request.getfixturevalue("image_root"))
    return lambda **given: ApptainerSandboxes(**{**made, **given})


def host_processes(word: str) -> list[str]:
    """Return the processes of this machine that have a word in their command line."""
    listed = subprocess.run(["ps", "-eo", "pid,args", "ww"], capture_output=True, text=True, check=True).stdout
    return [line[:200] for line in listed.splitlines() if word in line]
