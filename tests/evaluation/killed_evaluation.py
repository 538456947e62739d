"""An evaluation of 50 tasks that kills itself after so many: killed_evaluation.py FOLDER NUMBER; 0 plays them all."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.types import Episode
from tests.evaluation.test_evaluator import make_evaluator


def main() -> None:
    folder, last = Path(sys.argv[1]), int(sys.argv[2])
    played: list[Episode] = []

    def count(episode: Episode) -> None:
        played.append(episode)
        if len(played) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    tasks = RepoRepair(max_turns=6).tasks("heldout")[:50]
    make_evaluator(folder, tasks=tasks, concurrency=1).evaluate(0, count)
    sys.stdout.write(str(len(played)))


if __name__ == "__main__":
    main()
