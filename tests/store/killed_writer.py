"""Write a small store again and again, killed one file operation later each time.

    python killed_writer.py FOLDER

Attempt n writes to FOLDER/n and is killed (SIGKILL) before its n-th operation on the file system; the last attempt,
which lives to the end, is the one that the others are compared with.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from dagger_exp.store.schema import to_table
from dagger_exp.store.store import Store
from dagger_exp.types import Actor, Episode, StopReason, Turn

OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def episode(round_index: int, episode_index: int) -> Episode:
    """Return an episode of `episode_index` turns."""
    turns = [
        Turn(index, Actor.STUDENT, "see", [1, 2], index == 0, "do", [3], [-0.5], "do", [3])
        for index in range(episode_index)
    ]
    return Episode(round_index, episode_index, "task", StopReason.SOLVED, turns)


def write(folder: Path) -> None:
    """Do what a run does, from wherever it stands: two rounds of two episodes, and one that is dropped."""
    store = Store(folder, "run")
    store.claim()
    while (round_index := store.next_round()) < 2:
        for together in ((2,), (3, 0, 1)):
            if not store.committed(round_index).keys() >= {*together} - {3}:
                store.commit(*(episode(round_index, episode_index) for episode_index in together))
        store.discard(round_index, {3})
        store.close_round(round_index, 2, {"attempts": 1})


def write_until_killed(folder: Path, num_operations: int) -> None:
    """Write, but die before operation `num_operations` on this folder."""
    seen = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in OPERATIONS and str(arguments[0]).startswith(str(folder)):
            if seen == num_operations:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(count)
    write(folder)


def main() -> None:
    """Fork one attempt after the other until one is not killed."""
    to_table("run", [episode(0, 1)])  # Arrow imports pandas for its first array: once here, and not in every attempt
    attempt, status = 0, -1
    while status != 0:
        folder = Path(sys.argv[1]) / str(attempt)
        process = os.fork()
        if process == 0:
            write_until_killed(folder, attempt)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if status not in (0, -signal.SIGKILL):
            sys.exit(f"attempt {attempt} failed by itself")
        attempt += 1


if __name__ == "__main__":
    main()
