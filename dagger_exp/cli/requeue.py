"""Who starts a run again that had to stop? We do, and nobody else (submitit and Lightning would too)."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess

from dagger_exp.cli.jobs import COMMAND_TIMEOUT_S, is_first_process, slurm_id


def requeue(heard: signal.Signals) -> bool:
    """Ask SLURM to start this job again; return whether it will."""
    if not slurm_id() or not is_first_process() or shutil.which("scontrol") is None:
        return False
    return not is_cancelled(heard) and _scontrol("requeue", slurm_id()).returncode == 0


def is_cancelled(heard: signal.Signals) -> bool:
    """Return whether a signal means that this job shall not go on.

    A TERM at a job that SLURM still calls running comes before a preemption, which may or may not requeue by itself.
    One at a job that SLURM is ending comes from `scancel`, and to start that one again is nobody's wish.
    """
    if not slurm_id() or shutil.which("scontrol") is None:
        return False
    return heard is signal.SIGTERM and _job_field("JobState") != "RUNNING"


def _job_field(name: str) -> str:
    found = re.search(rf"\b{name}=(\S+)", _scontrol("--oneliner", "show", "job", slurm_id()).stdout)
    return found.group(1) if found else ""


def _scontrol(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["scontrol", *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT_S)  # noqa: S603
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, returncode=1, stdout="", stderr="timeout")
