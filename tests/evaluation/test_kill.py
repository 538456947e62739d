"""A real SIGKILL in the midst of an evaluation."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dagger_exp.store.store import Store
from tests.evaluation.test_evaluator import recorded

ROOT = Path(__file__).parents[2]


def evaluated(folder: Path, last: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.evaluation.killed_evaluation", str(folder), str(last)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.mark.kill
def test_an_evaluation_that_is_killed_after_40_of_50_tasks_plays_the_other_10(tmp_path: Path) -> None:
    assert evaluated(tmp_path / "eval", 40).returncode == -signal.SIGKILL
    assert len(Store.open(tmp_path / "eval").committed(0)) == 40
    resumed, whole = evaluated(tmp_path / "eval", 0), evaluated(tmp_path / "whole", 0)
    assert (resumed.stdout, whole.stdout) == ("10", "50"), resumed.stderr
    episodes = [Store.open(tmp_path / name).read(0).all_episodes() for name in ("eval", "whole")]
    assert len(episodes[0]) == 50
    assert recorded(episodes[0]) == recorded(episodes[1])
