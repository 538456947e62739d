"""What has become of the jobs of a sweep? Told by their folders, and by SLURM where that knows more.

sweep.json               name, command, and each job's overrides and what differs
<slug>_<hash8>/          a job's run folder; its status.json says how it stands
.submitit/<launch>/      jobs.json: the jobs of a launch in order; <slurm id>/: their logs
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dagger_exp.errors import ConfigError, StoreError
from dagger_exp.store.files import read_json, write_json

ALIVE = ("pending", "running")
COMMAND_TIMEOUT_S = 60
SHORT_ERROR = 500
"""Characters of an error that fit into a block of a full disk."""
CLOCK_ERROR_S = 0.5
"""By how much two readings of when a process began may differ."""
STYLES = {"finished": "green", "failed": "red", "lost": "red", "running": "cyan", "cancelled": "yellow"}
WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""
CANCELLED = "cancelled"
"""A file of this name in a run folder keeps the run from being requeued."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobState:
    """A job as it stands.

    Attributes:
        name: of its folder.
        state: new, pending, running, lost (its process is gone), preempted, interrupted, failed, cancelled, finished.
        num_rounds: rounds that are over.
        success_rate: after the last of them, or None.
        seconds: that they took.
        error: last line of what ended it.
        slurm_id: of its last start, or "".
        pid: of its process on this host, or None.
    """

    name: str
    state: str
    num_rounds: int = 0
    success_rate: float | None = None
    seconds: float = 0.0
    error: str = ""
    slurm_id: str = ""
    pid: int | None = None


def job_states(sweep: Path, names: Sequence[str]) -> list[JobState]:
    """Return how these jobs stand; what cannot be read of one stands in its `error`."""
    ids, queue = slurm_ids(sweep), slurm_queue()
    return [job_state(sweep / name, ids.get(name, ""), queue) for name in names]


def counted(states: Sequence[JobState]) -> str:
    """Return how many jobs there are of each state, in words."""
    counts = Counter(state.state for state in states)
    return f"{len(states)} jobs: {', '.join(f'{count} {state}' for state, count in counts.items())}"


def print_jobs(states: Sequence[JobState], columns: Mapping[str, Sequence[str]]) -> None:
    """Print a line per job: these columns, by their headings, then how it stands."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in (*columns, "state", "rounds", "success", "SLURM id"):
        table.add_column(heading, overflow="fold")
    for state, *cells in zip(states, *columns.values(), strict=True):
        success = "" if state.success_rate is None else f"{state.success_rate:.3f}"
        how = (Text(state.state, STYLES.get(state.state, "")), str(state.num_rounds), success, state.slurm_id)
        table.add_row(*map(Text, cells), *how)
    Console(width=None if sys.stdout.isatty() else WIDTH).print(table, highlight=False)


def job_state(folder: Path, slurm_id: str, queue: Mapping[str, str] | None) -> JobState:
    """Return how a job stands.

    Args:
        folder: of its run.
        slurm_id: under which it was submitted, or "".
        queue: SLURM's states by id, or None where there is no SLURM.
    """
    try:
        status, rows = _read(folder / "status.json"), _read(folder / "summary.json").get("rounds", [])
    except StoreError as error:
        return JobState(name=folder.name, state="lost", error=str(error), slurm_id=slurm_id)
    pid = status.get("pid") if status.get("host") == socket.gethostname() else None
    state = str(status.get("state", "new"))
    if state == "running":  # of a launch that may be another than the last to SLURM
        slurm_id = str(status.get("slurm_id", ""))
    if state != "finished":
        state = _of_queue(state, slurm_id, queue) if slurm_id else _of_process(state, pid, status.get("started"))
    return JobState(
        name=folder.name,
        state=state,
        num_rounds=len(rows),
        success_rate=rows[-1].get("eval/success_rate") if rows else None,
        seconds=sum(row.get(f"round/{phase}_s", 0.0) for row in rows for phase in ("collect", "train", "evaluate")),
        error=str(status.get("error", "")) if state in ("failed", "lost") else "",
        slurm_id=slurm_id,
        pid=pid,
    )


def _of_queue(said: str, slurm_id: str, queue: Mapping[str, str] | None) -> str:
    if queue is None:  # on another machine than the cluster's
        return said if said != "new" else "pending"
    if slurm_id in queue:
        return "pending" if queue[slurm_id] in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED") else "running"
    return "lost" if said in ("running", "new") else said


def _of_process(said: str, pid: Any, started: Any) -> str:
    return "lost" if said == "running" and pid is not None and not is_alive(pid, started) else said


def is_alive(pid: Any, started: Any) -> bool:
    """Return whether the process of this host that signed runs: by now another may have its number."""
    try:
        process = psutil.Process(pid)
        return abs(started_at(process) - started) < CLOCK_ERROR_S and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, TypeError, ValueError):  # the last two: nobody has signed so
        return False


def started_at(process: psutil.Process) -> float:
    """Return when a process began, in seconds since the machine did, which no setting of its clock moves."""
    return process.create_time() - psutil.boot_time()


def refuse_second(folder: Path) -> None:
    """Look whether a process of this machine is at work in a run folder; raises `ConfigError` that names it."""
    if is_first_process() and (pid := _another_process(folder)):
        raise ConfigError(f"{folder} is of a run that process {pid} is at: wait for it, or end it with: kill {pid}")


def _another_process(folder: Path) -> int | None:
    """Return the process of this machine that is at work in a run folder; None where there is none but ours."""
    status = status_of(folder)
    pid = status.get("pid")
    if status.get("state") != "running" or status.get("host") != socket.gethostname() or pid in (None, os.getpid()):
        return None
    return pid if is_alive(pid, status.get("started")) else None


def status_of(folder: Path) -> dict[str, Any]:
    """Return what `status.json` holds; nothing where there is none, or a damaged one, which is written anew."""
    with suppress(StoreError):
        return _read(folder / "status.json")
    return {}


def slurm_queue() -> dict[str, str] | None:
    """Return the states of all queued or running SLURM jobs by id, None where there is no SLURM."""
    if shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--array", "--format=%i %T"]
    with suppress(subprocess.TimeoutExpired):
        shown = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)  # noqa: S603
        if shown.returncode == 0:
            return dict(line.split(maxsplit=1) for line in shown.stdout.splitlines() if " " in line.strip())
    return None


def slurm_ids(sweep: Path) -> dict[str, str]:
    """Return the id under which each job was submitted last, as far as it was."""
    ids: dict[str, str] = {}
    for launch in sorted((sweep / ".submitit").glob("*/jobs.json")):
        if (told := json.loads(launch.read_text()))["launcher"] != "SlurmLauncher":
            continue
        names = told["jobs"]
        for folder in launch.parent.iterdir():
            number, _, place = folder.name.partition("_")
            if number.isdigit() and (place.isdigit() or (not place and len(names) == 1)):
                ids[names[int(place or 0)]] = folder.name
    return ids


def read_sweep(sweep: Path) -> dict[str, Any]:
    """Return what `sweep.json` holds.

    Raises:
        StoreError: there is none, or it is damaged.
    """
    if not (sweep / "sweep.json").is_file():
        raise StoreError(f"{sweep} is no sweep folder: it has no sweep.json; give one below outputs/sweeps/.")
    found = read_json(sweep / "sweep.json", "launch the sweep again to write it anew")
    if missing := {"name", "command", "launches", "jobs"} - found.keys():
        raise StoreError(
            f"{sweep}/sweep.json lacks {', '.join(sorted(missing))}: launch the sweep again to write it anew."
        )
    return found


def set_state(folder: Path, state: str, error: str = "", **more: Any) -> None:
    """Write a run's `status.json`; on a full disk over the earlier one, which has a block of the disk."""
    path, status = folder / "status.json", {"state": state, "error": error, **more}
    try:
        write_json(path, status)
    except StoreError:
        if not path.exists():
            raise
        with path.open("r+") as file:  # neither truncated nor beyond its block: both would need room
            file.write(json.dumps(status | {"error": error[:SHORT_ERROR]}))
            file.truncate()


def sign() -> dict[str, Any]:
    """Return where this process runs, for `status.json`."""
    process = psutil.Process()
    return {
        "host": socket.gethostname(),
        "pid": process.pid,
        "started": started_at(process),
        "slurm_id": slurm_id(),
    }


def is_first_process() -> bool:
    """Return whether this is the only process of its run, or the first of those that Lightning or srun started."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))


def slurm_id() -> str:
    """Return the id of the SLURM job that this process belongs to, "" outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, "delete it and launch the sweep again") if path.exists() else {}
