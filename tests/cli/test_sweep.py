"""Sweeps on one machine: what is shown, what a job is called, what a second launch does, what a signal does."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.cli.arguments import parsed
from dagger_exp.cli.jobs import job_states, set_state, sign
from dagger_exp.cli.sweeping import sweep
from dagger_exp.config.mistakes import options
from dagger_exp.config.schema import register_schema

BIN = Path(sys.executable).parent
QUICK = ("debug=default", "rounds.labels=20", "rounds.steps=2", "evaluation.tasks=2", "env.num_bugs=1")
Call = Callable[..., Any]


def jobs_of(sweep: Path) -> list[str]:
    return list(json.loads((sweep / "sweep.json").read_text())["jobs"])


def state_of(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["state"]


def test_a_dry_run_shows_the_jobs_and_starts_none(call: Call, tmp_path: Path) -> None:
    answer = call("train", "-m", *QUICK, "schedule=linear,constant", "schedule.start=1.0,0.5", "dry_run=true")
    assert answer.code == 0, answer.err
    assert "sweep schedule-schedule.start in" in answer.out
    assert "4 jobs: 4 new. To come: 160 labels, 16 steps." in answer.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_file_expands_to_legal_jobs_over_six_seeds(call: Call, tmp_path: Path, name: str) -> None:
    answer = call("train", f"sweep={name}", "seed=0", "dry_run=true")  # a seed makes no job illegal
    assert answer.code == 0, answer.err
    assert re.search(r"(\d+) jobs: \1 new\.", answer.out)
    assert f"sweep {name} in" in answer.out
    assert list(tmp_path.iterdir()) == []
    shown = call("train", f"sweep={name}", "--cfg", "hydra", "--package", "hydra.sweeper.params")
    assert "seed: range(6)\n" in shown.out


def test_what_is_typed_replaces_what_a_sweep_file_says(call: Call) -> None:
    answer = call("train", "sweep=beta", "seed=7", "schedule=linear,paper", "dry_run=true")
    assert "2 jobs: 2 new." in answer.out
    assert re.search(r"0 +linear +new", answer.out)


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (["seed=0,1", "schedule=linear,lnear"], "schedule=lnear does not exist; did you mean schedule=linear?"),
        (["seed=0,1", "rounds.num_round=3"], "rounds.num_round is unknown; did you mean rounds.num_rounds?"),
        (["seed=0,0"], "1 jobs are in the sweep twice, as seed-0_"),
        (["schedule.start=interval(0,1)"], "schedule.start=interval(0,1) has no steps; list values, as in "),
        (["seed=0,1", "launcher=slrm"], "launcher=slrm does not exist; did you mean launcher=slurm?"),
        (["seed=0,1", "launcher=slurm", "hydra.launcher.partitoin=x"], "hydra.launcher.partitoin is unknown"),
        (["sweep=bta"], "sweep=bta does not exist; did you mean sweep=beta?"),
    ],
)
def test_a_mistake_in_a_sweep_starts_nothing(call: Call, tmp_path: Path, typed: list[str], sentence: str) -> None:
    answer = call("train", "-m", *QUICK, *typed)
    assert answer.code == 2, answer.out
    assert answer.err.startswith(f"error: {sentence}"), answer.err
    assert list(tmp_path.iterdir()) == []


def test_dry_run_is_for_sweeps(call: Call) -> None:
    answer = call("train", "dry_run=true")
    assert answer.err.startswith("error: dry_run=true shows the jobs of a sweep; add -m")


def test_without_slurm_its_launcher_says_so_and_leaves_nothing(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = call("train", "-m", *QUICK, "seed=0,1", "launcher=slurm")
    assert answer.code == 2
    assert answer.err.startswith("error: launcher=slurm finds no SLURM commands on this machine")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_that_is_refused_leaves_what_was_there(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    typed = ("-m", *QUICK, "seed=0,1", "launcher=slurm", f"hydra.sweep.dir={tmp_path}/sweep")
    (tmp_path / "sweep").mkdir()
    assert call("train", *typed).code == 2
    assert list((tmp_path / "sweep").iterdir()) == []  # a folder that was there before stays
    (tmp_path / "sweep" / "notes.txt").touch()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    assert call("train", *typed).code == 2
    assert {path.name for path in (tmp_path / "sweep").iterdir()} == {"notes.txt", "sweep.json"}


def test_what_another_launch_has_begun_is_left_to_it(tmp_path: Path) -> None:
    typed = [*QUICK, "seed=0,1", f"hydra.sweep.dir={tmp_path}"]
    played: list[int] = []

    def play(cfg: Any) -> None:
        played.append(cfg.seed)
        [other] = (tmp_path / name for name in jobs_of(tmp_path) if name.startswith("seed-1_"))
        other.mkdir(exist_ok=True)
        set_state(other, "running", **sign())

    register_schema()
    with pytest.raises(SystemExit):  # the other job is not finished
        sweep(parsed(["-m", *typed]), "train", play)
    assert played == [0]


def test_a_job_whose_number_another_process_has_is_lost(tmp_path: Path) -> None:
    for name, changed in (("ours", {}), ("another", {"started": 1.0})):
        (tmp_path / name).mkdir()
        set_state(tmp_path / name, "running", **{**sign(), **changed})
    assert [state.state for state in job_states(tmp_path, ["ours", "another"])] == ["running", "lost"]


def test_a_second_launch_runs_what_failed_and_what_is_new(call: Call, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    folder = f"hydra.sweep.dir={sweep}"
    values = ("rounds.num_rounds=1", "logger=wandb_offline")
    answer = call("train", "-m", *QUICK, *values, "schedule.floor=2,0,0.1", folder)
    assert answer.code == 1
    assert "error: schedule.floor is 2; a probability lies in [0, 1]." in answer.err
    assert "failed: floor-2_" in answer.err
    assert "Traceback" not in answer.err, answer.err
    jobs = [sweep / name for name in jobs_of(sweep)]
    assert [state_of(job) for job in jobs] == ["failed", "finished", "finished"]
    assert [re.sub(r"_\w{8}$", "", job.name) for job in jobs] == ["floor-2", "floor-0", "floor-0.1"]
    check_the_wandb_runs(jobs[1:])
    names = [json.loads((job / "manifest.json").read_text())["config"]["name"] for job in jobs[1:]]
    assert names == ["dagger", "dagger_floor-0.1"]

    before = [(job / "status.json").read_text() for job in jobs[1:]]
    answer = call("train", "-m", *QUICK, *values, "schedule.floor=0,0.1,0.2", folder)
    assert answer.code == 0, answer.err
    assert "3 jobs: 2 finished, 1 new." in answer.out
    assert [(job / "status.json").read_text() for job in jobs[1:]] == before
    assert len(jobs_of(sweep)) == 4

    monitor = subprocess.run([BIN / "dagger-sweep", "status", sweep], capture_output=True, text=True, check=True)
    assert "4 jobs: 1 failed, 3 finished" in monitor.stdout
    assert "schedule.floor is 2; a probability lies in [0, 1]." in monitor.stdout


def check_the_wandb_runs(jobs: list[Path]) -> None:
    """One run per job, named by its config; the sweep is the group."""
    ids = [json.loads((job / "manifest.json").read_text())["run_id"] for job in jobs]
    assert ids == [f"schedule.floor-{job.name[-8:]}" for job in jobs]
    for job, run_id in zip(jobs, ids, strict=True):
        (log,) = (job / "wandb").glob("offline-run-*/*.wandb")
        (began,) = [record["run"] for record in inspected(log) if record["type"] == "run"]
        assert (began["run_id"], began["run_group"], began["job_type"]) == (run_id, "schedule.floor", "train")
        assert began["config"]["update"]["overrides"]["schedule.floor"] == job.name.split("_")[0].removeprefix("floor-")


def inspected(log: Path) -> list[dict[str, Any]]:
    """Return the records of an offline W&B run."""
    command = [str(BIN / "wandb"), "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def rows_of(folder: Path) -> list[dict[str, float]]:
    """Return a run's rows without seconds."""
    rows = json.loads((folder / "summary.json").read_text())["rounds"]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


LONG = ("debug=default", "rounds.labels=60", "rounds.steps=30", "rounds.num_rounds=2", "logger=wandb_offline")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    subprocess.run([BIN / "dagger-train", *LONG, f"hydra.run.dir={folder}"], capture_output=True, check=True)
    return folder


@pytest.mark.kill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("phase", "heard"), [("collect", signal.SIGUSR1), ("train", signal.SIGUSR2), ("evaluate", signal.SIGTERM)]
)
def test_a_run_that_is_signalled_goes_on_as_if_nothing_had_been(
    call: Call, tmp_path: Path, alone: Path, phase: str, heard: signal.Signals
) -> None:
    folder = tmp_path / "run"
    assert signalled(folder, f"round 2/2 +{phase}", heard) == 128 + heard
    assert state_of(folder) == "preempted"
    resumed = call("train", f"resume={folder}")
    assert resumed.code == 0, resumed.err
    assert rows_of(folder) == rows_of(alone)
    check_one_wandb_history(folder)


@pytest.mark.kill
def test_a_sweep_that_is_interrupted_says_how_it_goes_on(tmp_path: Path) -> None:
    command = [str(BIN / "dagger-train"), "-m", *LONG, "seed=0,1", "sweep_name=cut", f"paths.output_folder={tmp_path}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout is not None
        assert any("collect" in line for line in process.stdout)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.endswith(f"Go on with:\n  dagger-sweep resume {tmp_path}/sweeps/cut\n")
    assert "Traceback" not in said


def signalled(folder: Path, place: str, heard: signal.Signals) -> int:
    """Start a run, send it a signal at a place of what it prints, and return its exit code."""
    command = [str(BIN / "dagger-train"), *LONG, f"hydra.run.dir={folder}"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        said = ""
        while not re.search(place, said):
            said += (line := process.stdout.readline())
            assert line, said
        process.send_signal(heard)
        said += process.stdout.read()
    assert "Traceback" not in said
    assert f"{heard.name}: saved. Go on with:\n  dagger-train resume={folder}" in said
    return process.returncode


def check_one_wandb_history(folder: Path) -> None:
    """Both offline runs have one id, and what the second adds comes after the first in the history."""
    logs = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert len({log.name for log in logs}) == 1
    rounds: list[float] = []
    steps: list[int] = []
    for log in logs:
        history = [record["history"] for record in inspected(log) if record["type"] == "history"]
        # As the server does: what is not newer than what it has is dropped.
        new = [h for h in history if not steps or h["step"]["num"] > steps[-1]]
        own = [h["step"]["num"] for h in history]
        assert own == sorted(set(own))
        steps += [h["step"]["num"] for h in new]
        rounds += [h["item"]["round"] for h in new if "eval/success_rate" in h["item"]]
    assert rounds == [0, 1]
    logged = [step // 3 for step in steps if step % 3 == 0]
    assert logged == [*range(10, 61, 10)]


@pytest.mark.kill
@pytest.mark.timeout(1800)
def test_a_sweep_that_is_cancelled_stays_so_until_it_is_resumed(call: Call, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    command = [BIN / "dagger-train", "-m", *LONG, "seed=0,1", f"hydra.sweep.dir={sweep}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as run:
        assert run.stdout is not None
        while "train" not in (line := run.stdout.readline()).split():
            assert line
        said = call("sweep", "cancel", str(sweep)).out
        assert said.startswith("1 of 2 jobs are cancelled; go on with: dagger-sweep resume")
        run.stdout.read()
    assert run.returncode == 128 + signal.SIGTERM
    assert state_of(sweep / jobs_of(sweep)[0]) == "cancelled"
    assert not (sweep / jobs_of(sweep)[1] / "status.json").exists()
    done = subprocess.run([BIN / "dagger-sweep", "resume", sweep], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs are finished" in done.stdout
