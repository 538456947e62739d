"""Parts of a user's own folder, made word for word as docs/your_own_world.md says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.commands import Call

PAGE = Path(__file__).parents[2] / "docs" / "your_own_world.md"
SHORT = ("debug=default", "rounds.steps=1", "rounds.labels=20", "evaluation.tasks=2", "evaluation.validation_tasks=2")


def blocks(kind: str) -> list[str]:
    """Return the blocks of a language, in order."""
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with what the page writes; the process finds modules there as that of a new command does."""
    (tmp_path / "conf" / "env").mkdir(parents=True)
    [module], [config] = blocks("python"), blocks("yaml")
    (tmp_path / "guessing.py").write_text(module)
    (tmp_path / "conf" / "env" / "guessing.yaml").write_text(config)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delitem(sys.modules, "guessing", raising=False)
    return tmp_path


def test_the_page_on_ones_own_world_works_as_it_is_written(call: Call, folder: Path) -> None:
    first, second = (shlex.split(block) for block in blocks("sh"))
    for words in (first, second):
        assert words[0] == "dagger-train"
        chosen = [word for word in words[1:] if word.partition("=")[0] not in {one.partition("=")[0] for one in SHORT}]
        answer = call("train", *chosen, *SHORT, "hydra.run.dir=run")
        assert answer.code == 0, answer.err
        assert "dagger-train --config-dir conf env=guessing" in answer.out, "the next command can be pasted"
        rows = json.loads((folder / "run" / "summary.json").read_text())["rounds"]
        assert rows[-1]["rollout/num_labels"] >= 20
        answer = call("evaluate", "student.init=run", "evaluation.tasks=3", "hydra.run.dir=evaluated")
        assert answer.code == 0, answer.err
        for made in ("run", "evaluated"):
            (folder / made).rename(folder / f"{made}_{len(list(folder.iterdir()))}")


def test_a_module_that_is_not_there_is_named_with_the_folder_that_was_searched(call: Call, folder: Path) -> None:
    (folder / "guessing.py").unlink()
    answer = call("train", "--config-dir", "conf", "env=guessing", *SHORT)
    assert answer.code == 2
    assert answer.err.count("\n") == 1
    assert "env._target_ is guessing.GuessingGame, which cannot be imported (" in answer.err
    assert f"{folder} was searched too." in answer.err
