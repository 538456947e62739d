"""A sandbox of the tests: a folder and a shell of this machine, for scripts that are written in the tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from dagger_exp.protocols import Execution
from dagger_exp.types import Message

ENVIRONMENT = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
"""In which `python` is the one of the tests."""


class FolderSandbox:
    """Keeps `/work` in a folder, and tells a script and its output the folder's name instead of it and back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def exec(self, script: str, timeout_s: float) -> Execution:
        command = ["bash", "-c", script.replace("/work", str(self.folder))]
        try:
            done = subprocess.run(  # noqa: ASYNC221 - the scripts of the tests are over at once
                command,
                cwd=self.folder,
                env=ENVIRONMENT,
                timeout=timeout_s,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            return Execution(None, (error.stdout or b"").decode(), timed_out=True)
        exit_code = 128 - done.returncode if done.returncode < 0 else done.returncode
        return Execution(exit_code, done.stdout.decode(errors="replace").replace(str(self.folder), "/work"))

    async def read_file(self, path: str) -> bytes:
        place = self._place(path)
        if not place.is_file():
            raise FileNotFoundError(path)
        return place.read_bytes()

    async def write_files(self, files: Mapping[str, bytes]) -> None:
        for path, content in files.items():
            self._place(path).parent.mkdir(parents=True, exist_ok=True)
            self._place(path).write_bytes(content)

    async def close(self) -> None:
        pass

    def _place(self, path: str) -> Path:
        return self.folder / path.removeprefix("/work").lstrip("/")


@pytest.fixture
def sandbox(tmp_path: Path) -> FolderSandbox:
    """Give an empty one."""
    return FolderSandbox(tmp_path)


def num_left_out(observation: Message) -> int:
    """Return how many characters an observation says that it lacks."""
    said = re.search(r"\[(\d+) characters left out\]", observation.content)
    return int(said[1]) if said else 0
