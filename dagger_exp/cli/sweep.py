"""dagger-sweep: how a sweep stands, from disk; works without the process that launched it.

dagger-sweep status outputs/sweeps/beta      each job: state, round, success so far, last error, SLURM id
dagger-sweep resume outputs/sweeps/beta      launch again what is not finished, as it was launched
dagger-sweep cancel outputs/sweeps/beta      end what is pending or running; `resume` goes on later
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dagger_exp.cli.arguments import quoted
from dagger_exp.cli.complaints import complain
from dagger_exp.cli.jobs import (
    ALIVE,
    CANCELLED,
    COMMAND_TIMEOUT_S,
    JobState,
    counted,
    job_states,
    print_jobs,
    read_sweep,
    set_state,
)
from dagger_exp.errors import StoreError


def main() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["status", "resume", "cancel"])
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    try:
        found = read_sweep(arguments.folder)
        if arguments.action == "resume":
            sys.exit(resume(arguments.folder, found["command"], found["launches"]))
        states = job_states(arguments.folder.resolve(), list(found["jobs"]))
        if arguments.action == "cancel":
            cancel(arguments.folder.resolve(), states)
        else:
            show(found["name"], states)
    except StoreError as error:
        sys.exit(complain(error))


def show(name: str, states: Sequence[JobState]) -> None:
    """Print a line per job, how many there are of each state, and what ended those that failed."""
    print_jobs(states, {"job": [state.name for state in states]})
    print(f"{name}: {counted(states)}")
    for state in states:
        if state.error:
            print(f"{state.name}: {state.error}")


def resume(folder: Path, command: str, launches: Sequence[Sequence[str]]) -> int:
    """Launch all that was launched into this folder again; return the exit code."""
    code = 0
    for typed in launches:
        others = [override for override in typed if not override.startswith("hydra.sweep.dir=")]
        program = str(Path(sys.executable).with_name(f"dagger-{command}"))
        again = [program, "-m", *others, f"hydra.sweep.dir={quoted(str(folder.resolve()))}"]
        code = max(code, subprocess.run(again, check=False).returncode)  # noqa: S603 - our own command
    return code


def cancel(folder: Path, states: Sequence[JobState]) -> None:
    """End what is pending or running, so that nothing starts it again by itself."""
    alive = [state for state in states if state.state in ALIVE]
    for state in [*alive, *(state for state in states if state.state == "new")]:
        (folder / state.name).mkdir(exist_ok=True)
        (folder / state.name / CANCELLED).touch()
    ids = [state.slurm_id for state in alive if state.slurm_id]
    if ids and shutil.which("scancel"):
        subprocess.run(["scancel", *ids], check=False, timeout=COMMAND_TIMEOUT_S)  # noqa: S603, S607
    for state in alive:
        if not state.slurm_id and state.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(state.pid, signal.SIGTERM)
        if state.state == "pending" or (not state.slurm_id and state.pid is None):
            set_state(folder / state.name, "cancelled")
    print(f"{len(alive)} of {len(states)} jobs are cancelled; go on with: dagger-sweep resume {folder}")


if __name__ == "__main__":
    main()
