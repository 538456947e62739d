"""A sweep as an array of a real SLURM: signals, preemption, a job that fails, and a second launch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.cli.jobs import job_states

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
BIN = Path(sys.executable).parent
PATIENCE_S = 900
SHORT = ("debug=default", "rounds.num_rounds=3", "rounds.labels=60", "rounds.steps=30", "logger=csv")
SWEPT = ("schedule=linear,exponential", "schedule.start=1.0,0.9,0.8", "seed=0,1")
LAUNCHER = (
    *("launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"),
    *("hydra.launcher.timeout_min=30", "hydra.launcher.array_parallelism=4"),
)
Environment = dict[str, str]


def said(environment: Environment, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    full = [str(BIN / command[0]), *command[1:]]
    return subprocess.run(full, cwd=place, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def slurm(environment: Environment, *command: str) -> str:
    done = subprocess.run(list(command), env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip()


def until(holds: Callable[[], Any], what: str) -> Any:
    """Poll until something holds; SLURM is the one that acts, and tells nobody."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def restart_held(environment: Environment) -> None:
    """Let requeued jobs begin at once: SLURM holds them back for two minutes."""
    for number in slurm(environment, "squeue", "--noheader", "--array", "--states=PENDING", "--format=%i").split():
        if "BeginTime" in slurm(environment, "squeue", "--noheader", f"--jobs={number}", "--format=%r"):
            slurm(environment, "scontrol", "update", f"JobId={number}", "StartTime=now")


def table(folder: Path) -> list[dict[str, float]]:
    """Return a run's rows without seconds."""
    rows = json.loads((folder / "summary.json").read_text())["rounds"]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def test_a_sweep_survives_signals_preemption_and_a_failed_job(cluster: Environment, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    typed = ("-m", *LAUNCHER, *SHORT, *SWEPT, f"hydra.sweep.dir={sweep}")
    dry = said(cluster, tmp_path, "dagger-train", *typed, "dry_run=true")
    assert "12 jobs: 12 new." in dry.stdout, dry.stderr
    assert not sweep.exists()
    with subprocess.Popen(
        [BIN / "dagger-train", *typed], cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as launcher:
        try:
            jobs = list(until(lambda: (sweep / "sweep.json").exists() and names(sweep), "the sweep was not written"))
            damage(sweep / jobs[-1])
            usr2 = until(lambda: in_the_middle(sweep, jobs[:4]), "no job reached round 1")
            with suppress(subprocess.TimeoutExpired):  # scancel waits for a job that is requeued before it is answered
                slurm(cluster, "scancel", "--signal=USR2", state_of(sweep, usr2).slurm_id)
            preempted = preempt_one(cluster, sweep, [name for name in jobs[:-1] if name != usr2])
            until(lambda: restart_held(cluster) or launcher.poll() is not None, "the sweep did not end")
        finally:
            launcher.kill()
        assert launcher.stdout is not None
        assert "11 of 12 jobs are finished" in launcher.stdout.read().decode()
    assert launcher.returncode == 1
    check_the_failed_one(cluster, sweep, jobs[-1])
    for name in (usr2, preempted):
        assert "the run is preempted" in (sweep / name / "train.log").read_text()
        assert table(sweep / name) == table(undisturbed(cluster, tmp_path, sweep, name))
    mend(sweep / jobs[-1])
    check_the_second_launch(cluster, sweep, jobs)


def damage(folder: Path) -> None:
    """Let a job fail: its store is of another schema version."""
    (folder / "rounds").mkdir(parents=True)
    (folder / "rounds" / "store.json").write_text("{}")


def mend(folder: Path) -> None:
    (folder / "rounds" / "store.json").unlink()


def check_the_failed_one(environment: Environment, sweep: Path, name: str) -> None:
    shown = said(environment, sweep, "dagger-sweep", "status", str(sweep)).stdout
    assert "12 jobs: 11 finished, 1 failed" in shown
    assert re.search(rf"{name} +failed +0 +\d+_11", shown)
    assert re.search(rf"{name}: .*store\.json has schema version None", shown)
    shown = slurm(environment, "scontrol", "--oneliner", "show", "job", state_of(sweep, name).slurm_id)
    assert "JobState=FAILED" in shown
    assert "Traceback" in (sweep / name / "train.log").read_text()


def undisturbed(environment: Environment, place: Path, sweep: Path, name: str) -> Path:
    """Return the folder of the same run, alone."""
    overrides = json.loads((sweep / "sweep.json").read_text())["jobs"][name]["overrides"]
    alone = [o for o in overrides if not o.startswith(("launcher=", "hydra.", "sweep_name="))]
    folder = place / "undisturbed" / name
    done = said(environment, place, "dagger-train", *alone, f"hydra.run.dir={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def check_the_second_launch(environment: Environment, sweep: Path, jobs: list[str]) -> None:
    """Launching again runs nothing but the failed job."""
    before = {name: (sweep / name / "status.json").read_text() for name in jobs[:-1]}
    again = said(environment, sweep, "dagger-sweep", "resume", str(sweep))
    assert again.returncode == 0, again.stdout + again.stderr
    assert "12 jobs: 11 finished, 1 failed" in again.stdout
    assert "12 of 12 jobs are finished" in again.stdout
    assert {name: (sweep / name / "status.json").read_text() for name in jobs[:-1]} == before
    last = max((sweep / ".submitit").iterdir())
    assert json.loads((last / "jobs.json").read_text())["jobs"] == [jobs[-1]]


def names(sweep: Path) -> list[str]:
    return list(json.loads((sweep / "sweep.json").read_text())["jobs"])


def state_of(sweep: Path, name: str) -> Any:
    """Return a job's state; the id does not depend on the queue."""
    (state,) = job_states(sweep, [name])
    return state


def in_the_middle(sweep: Path, jobs: list[str]) -> str | None:
    """Return a job that has closed round 0 and is not over."""
    for name in jobs:
        status = sweep / name / "status.json"
        is_running = status.exists() and json.loads(status.read_text())["state"] == "running"
        if is_running and (sweep / name / "rounds" / "000" / "manifest.json").exists():
            return name
    return None


def preempt_one(environment: Environment, sweep: Path, jobs: list[str]) -> str:
    """Fill the machine from a partition that goes first, and return a job that had to leave for it."""
    until(lambda: in_the_middle(sweep, jobs), "no job is in the middle")
    for _ in range(4):
        slurm(environment, "sbatch", "--partition=high", "--output=/dev/null", "--wrap=sleep 3")

    def has_left() -> str | None:
        for name in jobs:
            log = sweep / name / "train.log"
            if log.exists() and "the run is preempted" in log.read_text():
                return name
        return None

    return until(has_left, "no job was preempted")


def test_what_slurm_refuses_is_said_in_its_words(cluster: Environment, tmp_path: Path) -> None:
    typed = ("-m", *LAUNCHER, *SHORT, "seed=0,1", "hydra.launcher.partition=nope", f"hydra.sweep.dir={tmp_path}/sweep")
    answer = said(cluster, tmp_path, "dagger-train", *typed)
    assert answer.returncode == 2, answer.stdout
    assert re.search(r"error: SLURM refuses the sweep: .*invalid partition specified: nope", answer.stderr)
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []
