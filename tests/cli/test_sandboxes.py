"""A run whose sandboxes cannot be had ends before its first episode, and before anything is fetched."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORLD = ("debug=default", "env=pypi_bugs", "scaffold=bash", "sandbox=bubblewrap")


@pytest.mark.parametrize("command", ["train", "evaluate", "collect"])
def test_no_bubblewrap(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "git").symlink_to(shutil.which("git") or "/usr/bin/git")
    monkeypatch.setenv("PATH", str(programs))
    answer = call(command, *WORLD, f"student.init={programs}")
    assert answer.code == 2
    assert answer.err == ("error: sandbox=bubblewrap needs bwrap: install the package bubblewrap (apt, dnf, conda).\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [programs / "git"]
