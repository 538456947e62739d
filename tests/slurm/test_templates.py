"""The sbatch templates, submitted to a real SLURM."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Environment, slurm, until

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
BIN = Path(sys.executable).parent
TEMPLATES = Path(__file__).parents[2] / "slurm"
SHORT = ("debug=default", "logger=csv", "rounds.steps=[40,4]", "callbacks.checkpoint_steps=2")
HERE = {
    "##SBATCH --partition=gpu": "#SBATCH --partition=both",
    "##?SBATCH --gpus-per-node=.": "",
    "#SBATCH --mem=.*": "",
    "#SBATCH --cpus-per-task=.": "#SBATCH --cpus-per-task=1",
    "source .venv/bin/activate": f"export PATH={BIN}:$PATH",
}
"""Lines that a template leaves to its user, and what they are here: no GPUs, no sizes of memory, a core per process."""
ON_CPU = {r" +trainer=gpu \\": r"    trainer=cpu \\"}


def submitted(environment: Environment, place: Path, name: str, changes: dict[str, str], *arguments: str) -> str:
    """Submit a template in which only some lines differ, from a folder with `outputs/`; return the job's id."""
    text = (TEMPLATES / name).read_text()
    for old, new in (HERE | changes).items():
        text, count = re.subn(rf"(?m)^{old}$", new, text)
        assert count == 1, f"{name} has {count} lines {old}"
    (place / "outputs").mkdir(parents=True, exist_ok=True)
    (place / name).write_text(text)
    job = slurm(environment, "sbatch", "--parsable", name, *arguments, place=place)
    assert job.isdigit(), f"SLURM refuses {name}"
    return job


def processes_per_node(template: int, here: int) -> dict[str, str]:
    line = "#SBATCH --ntasks-per-node="
    return {f"{line}{template}": f"{line}{here}"}


def job_state(environment: Environment, job: str) -> str:
    shown = slurm(environment, "scontrol", "--oneliner", "show", "job", job)
    return "|".join(sorted(set(re.findall(r"\bJobState=(\S+)", shown))))


def end_of(environment: Environment, place: Path, job: str) -> str:
    """Wait until a job or all tasks of an array have ended; return how."""
    ends = re.compile(r"COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL")
    return until(lambda: (s := job_state(environment, job)) and ends.fullmatch(s) and s, said(place, job))


def said(place: Path, job: str) -> str:
    return "".join(output.read_text() for output in sorted(place.glob(f"outputs/slurm_{job}*.out")))


def run_folder(place: Path, job: str) -> Path:
    return place / "outputs" / "runs" / f"slurm_{job}"


def interrupt(environment: Environment, place: Path, job: str) -> None:
    """Send what SLURM sends before the time is over, while steps are taken."""
    until((run_folder(place, job) / "checkpoints" / "last.ckpt").exists, f"{job} did not train")
    command = ["scancel", "--signal=USR2", job]
    with subprocess.Popen(command, env=environment) as asking:  # unanswered while the job is requeued
        until(lambda: job_state(environment, job) == "PENDING", f"{job} was not requeued")
        asking.kill()


def table(environment: Environment, place: Path, job: str) -> list[dict[str, float]]:
    """Wait until a job has ended well, and return its rows without seconds."""
    assert end_of(environment, place, job) == "COMPLETED", said(place, job)
    folder = run_folder(place, job)
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    rows = json.loads((folder / "summary.json").read_text())["rounds"]
    return [{key: value for key, value in row.items() if not key.endswith("_s")} for row in rows]


def went_on(place: Path, job: str) -> bool:
    """Whether a run was preempted and then took up its checkpoint: from the beginning it would end the same."""
    log = (run_folder(place, job) / "train.log").read_text()
    return "Restored all states" in log.partition("the run is preempted")[2]


def test_runs_end_with_a_summary_also_after_usr2(cluster: Environment, tmp_path: Path) -> None:
    """All at once, since a requeued job waits for SLURM; two processes are the same run on one node and on two."""
    node, nodes = processes_per_node(4, 2), processes_per_node(4, 1)
    on_cpu = (*SHORT, "trainer.accelerator=cpu")
    one_node = submitted(cluster, tmp_path, "one_node.sbatch", node, *on_cpu)
    one_gpu = submitted(cluster, tmp_path, "one_gpu.sbatch", ON_CPU, *SHORT)
    interrupt(cluster, tmp_path, one_gpu)
    interrupt(cluster, tmp_path, one_node)
    several_nodes = submitted(cluster, tmp_path, "several_nodes.sbatch", nodes, *on_cpu)
    assert [row["round"] for row in table(cluster, tmp_path, one_gpu)] == [0, 1]
    assert table(cluster, tmp_path, one_node) == table(cluster, tmp_path, several_nodes)
    assert went_on(tmp_path, one_gpu)
    assert went_on(tmp_path, one_node)
    assert not went_on(tmp_path, several_nodes)


def test_a_teacher_has_a_node_of_its_own(cluster: Environment, tmp_path: Path) -> None:
    """Stand-ins for the two commands and for curl say where they run and how often; two processes a node."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "dagger-serve").write_text('#!/bin/sh\necho "$SLURMD_NODENAME $*" >> served\nsleep 600\n')
    (place / "dagger-train").write_text('#!/bin/sh\necho "$SLURMD_NODENAME $*" >> trained.$SLURM_PROCID\n')
    (place / "curl").write_text("#!/bin/sh\ntest -e served\n")
    for stand_in in place.iterdir():
        stand_in.chmod(0o755)
    changes = processes_per_node(4, 2) | {"source .venv/bin/activate": f"export PATH={place}:$PATH"}
    job = submitted(cluster | {"TEACHER_NODES": "1"}, tmp_path, "several_nodes.sbatch", changes, "seed=3")
    assert end_of(cluster, tmp_path, job) == "COMPLETED", said(tmp_path, job)
    node, _, served = (tmp_path / "served").read_text().partition(" ")
    asked = f"seed=3 teacher.endpoint.address=http://{node}:8001"
    assert served == f"teacher --run {asked} --tensor-parallel-size 2\n"
    trained = [path.read_text() for path in sorted(tmp_path.glob("trained.*"))]
    assert len(trained) == 2
    for line in trained:
        assert line.partition(" ")[0] != node
        assert line.endswith(f" {asked}\n")


def test_agents_are_told_the_sweep(cluster: Environment, tmp_path: Path) -> None:
    """A stand-in says with what `wandb` is started; what an agent does needs a server."""
    stand_in = tmp_path / "bin" / "wandb"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "wandb $* in $WANDB_DIR"\n')
    stand_in.chmod(0o755)
    changes = {"source .venv/bin/activate": f"export PATH={stand_in.parent}:$PATH"}
    name = "wandb_agent.sbatch"
    without = submitted(cluster, tmp_path, name, changes)
    array = cluster | {"SBATCH_ARRAY_INX": "0-1"}  # as `sbatch --array=0-1` says it
    job = submitted(array, tmp_path, name, changes, "me/it/abc")
    assert end_of(cluster, tmp_path, job) == "COMPLETED", said(tmp_path, job)
    assert said(tmp_path, job) == "wandb agent --forward-signals --count 1 me/it/abc in outputs\n" * 2
    assert end_of(cluster, tmp_path, without) == "FAILED"
    assert "give the sweep" in said(tmp_path, without)
