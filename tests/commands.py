"""How a command is called in this process: what it prints, and the code it ends with."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

Call = Callable[..., "Answer"]


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Call]:
    """Call a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions

    def called(command: str, *arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", [f"dagger-{command}", *arguments])
        code: object = 0
        try:
            importlib.import_module(f"dagger_exp.cli.{command}").main()
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return Answer(code if isinstance(code, int) else 1, said.out, said.err)

    yield called
    logging.captureWarnings(False)
    logging.raiseExceptions = raises
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
