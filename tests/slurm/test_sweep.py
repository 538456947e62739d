"""A sweep as an array of a real SLURM: signals, preemption, a job that fails, and a second launch."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.cli.jobs import job_states
from tests.slurm.conftest import Environment, slurm, until

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1800)]
BIN = Path(sys.executable).parent
SHORT = ("debug=default", "rounds.num_rounds=3", "rounds.labels=60", "rounds.steps=30", "logger=csv")
SWEPT = ("schedule=linear,exponential", "seed=0,1")
LAUNCHER = (
    *("launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=null"),
    *("hydra.launcher.timeout_min=30", "hydra.launcher.array_parallelism=2"),
)


def said(environment: Environment, place: Path, *command: str) -> subprocess.CompletedProcess[str]:
    full = [str(BIN / command[0]), *command[1:]]
    return subprocess.run(full, cwd=place, env=environment, capture_output=True, text=True, timeout=1200, check=False)


def table(folder: Path) -> list[dict[str, float]]:
    """Return a run's rows without seconds."""
    rows = json.loads((folder / "summary.json").read_text())["rounds"]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def test_a_sweep_survives_signals_preemption_and_a_failed_job(cluster: Environment, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    typed = ("-m", *LAUNCHER, *SHORT, *SWEPT, f"hydra.sweep.dir={sweep}")
    dry = said(cluster, tmp_path, "dagger-train", *typed, "dry_run=true")
    assert "4 jobs: 4 new." in dry.stdout, dry.stderr
    assert not sweep.exists()
    with subprocess.Popen(
        [BIN / "dagger-train", *typed], cwd=tmp_path, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as launcher:
        try:
            jobs = list(until(lambda: (sweep / "sweep.json").exists() and names(sweep), "the sweep was not written"))
            damage(sweep / jobs[-1])
            signalled = signal_one(cluster, sweep, jobs[:-1])
            preempted = preempt_one(cluster, sweep, [name for name in jobs[:-1] if name != signalled])
            assert launcher.stdout is not None
            assert "3 of 4 jobs are finished" in launcher.stdout.read().decode()
        finally:
            launcher.kill()
    assert launcher.returncode == 1
    check_the_failed_one(cluster, sweep, jobs[-1])
    for name in (signalled, preempted):
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
    assert "4 jobs: 3 finished, 1 failed" in shown
    assert re.search(rf"{name} +failed +0 +\d+_3", shown)
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
    assert "4 jobs: 3 finished, 1 failed" in again.stdout
    assert "4 of 4 jobs are finished" in again.stdout
    assert {name: (sweep / name / "status.json").read_text() for name in jobs[:-1]} == before
    last = max((sweep / ".submitit").iterdir())
    assert json.loads((last / "jobs.json").read_text())["jobs"] == [jobs[-1]]


def names(sweep: Path) -> list[str]:
    return list(json.loads((sweep / "sweep.json").read_text())["jobs"])


def state_of(sweep: Path, name: str) -> Any:
    """Return a job's state; the id does not depend on the queue."""
    (state,) = job_states(sweep, [name])
    return state


def signal_one(environment: Environment, sweep: Path, jobs: list[str]) -> str:
    """Send USR2 to a job that has closed a round and is not over; return its name once it has left."""

    name = until(lambda: running(sweep, jobs, "rounds/000/manifest.json"), "no job reached round 1")
    command = ["scancel", "--signal=USR2", state_of(sweep, name).slurm_id]
    with subprocess.Popen(command, env=environment) as asking:  # unanswered while the job is requeued
        until(lambda: has_left(sweep, [name]), f"{name} did not leave")
        asking.kill()
    return name


def preempt_one(environment: Environment, sweep: Path, jobs: list[str]) -> str:
    """Fill the machine from a partition that goes first, and return a job that had to leave for it."""
    until(lambda: running(sweep, jobs, "rounds/000"), "no other job runs")
    slurm(environment, "sbatch", "--partition=high", "--ntasks=4", "--output=/dev/null", "--wrap=sleep 1")
    return until(lambda: has_left(sweep, jobs), "no job was preempted")


def running(sweep: Path, jobs: list[str], sign: str) -> str | None:
    """Return one of the jobs that is not over and has made a file or folder of this name."""
    made = (name for name in jobs if (sweep / name / sign).exists())
    return next((n for n in made if json.loads((sweep / n / "status.json").read_text())["state"] == "running"), None)


def has_left(sweep: Path, jobs: list[str]) -> str | None:
    """Return one of the jobs that has been told to leave."""
    logs = {name: sweep / name / "train.log" for name in jobs}
    return next(
        (name for name, log in logs.items() if log.exists() and "the run is preempted" in log.read_text()), None
    )


def test_what_slurm_refuses_is_said_in_its_words(cluster: Environment, tmp_path: Path) -> None:
    typed = ("-m", *LAUNCHER, *SHORT, "seed=0,1", "hydra.launcher.partition=nope", f"hydra.sweep.dir={tmp_path}/sweep")
    answer = said(cluster, tmp_path, "dagger-train", *typed)
    assert answer.returncode == 2, answer.stdout
    assert re.search(r"error: SLURM refuses the sweep: .*invalid partition specified: nope", answer.stderr)
    assert "Traceback" not in answer.stderr
    assert list(tmp_path.iterdir()) == []
