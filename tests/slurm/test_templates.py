"""The sbatch templates, submitted to a real SLURM of two nodes on one machine."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1800)]
BIN = Path(sys.executable).parent
TEMPLATES = Path(__file__).parents[2] / "slurm"
PATIENCE_S = 900
SHORT = ("debug=default", "logger=csv", "rounds.steps=[40,4]", "callbacks.checkpoint_steps=2")
# The first node's name leads the list of nodes and is where the processes meet, so it is one that resolves. It stands
# second because SLURM takes a lone `localhost` for any node.
SECOND_NODE = "NodeName=localhost2 NodeAddr=127.0.0.1 Port={port} CPUs=4 State=UNKNOWN"
BOTH = "PartitionName=both Nodes=localhost,localhost2 MaxTime=INFINITE State=UP\n"
HERE = {
    "##SBATCH --partition=gpu": "#SBATCH --partition=both",
    "##?SBATCH --gpus-per-node=.": "",
    "#SBATCH --mem=.*": "",
    "#SBATCH --cpus-per-task=.": "#SBATCH --cpus-per-task=1",
    "source .venv/bin/activate": f"export PATH={BIN}:$PATH",
}
"""Lines that a template leaves to its user, and what they are here: no GPUs, no sizes of memory, a core per process."""
ON_CPU = {r" +trainer=gpu \\": r"    trainer=cpu \\"}
Environment = dict[str, str]


@pytest.fixture(scope="module")
def two_nodes(request: pytest.FixtureRequest) -> Iterator[Environment]:
    """Yield the environment of the cluster, given a second node: another slurmd on this machine."""
    fixtures: Any = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    with pytest.MonkeyPatch.context() as patch:
        node = SECOND_NODE.format(port=fixtures.free_port())
        patch.setattr(fixtures, "CLUSTER", node + fixtures.CLUSTER + BOTH)
        cluster: Environment = request.getfixturevalue("cluster")
    configuration = second_configuration(Path(cluster["SLURM_CONF"]))
    command = ["slurmd", "-D", "-c", "-f", configuration, "-N", "localhost2"]
    with subprocess.Popen(command, env=cluster, stderr=subprocess.DEVNULL) as daemon:
        try:
            asked = ("sinfo", "--noheader", "--nodes=localhost2", "--format=%T")
            until(lambda: "idle" in slurm(cluster, *asked), "the second node did not come up")
            yield cluster
        finally:
            slurm(cluster, "scancel", "--user=root")
            daemon.terminate()


def second_configuration(first: Path) -> Path:
    """Give the second slurmd files of its own."""
    path = first.with_name("second.conf")
    path.write_text(re.sub(r"(?m)^(Slurmd\w+=.*/)(spool|slurmd\.\w+)$", r"\1second_\2", first.read_text()))
    path.with_name("second_spool").mkdir()
    return path


def slurm(environment: Environment, *command: str, place: Path | None = None) -> str:
    done = subprocess.run(
        list(command), cwd=place, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    return done.stdout.strip()


def until(holds: Callable[[], Any], what: str) -> Any:
    """Poll until something holds; SLURM is the one that acts, and tells nobody."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


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
    """Send what SLURM sends before the time is over, while steps are taken; let the requeued job begin at once."""
    until((run_folder(place, job) / "checkpoints" / "last.ckpt").exists, f"{job} did not train")
    command = ["scancel", "--signal=USR2", job]
    with subprocess.Popen(command, env=environment) as asking:  # unanswered while the job is requeued
        until(lambda: job_state(environment, job) == "PENDING", f"{job} was not requeued")
        asking.kill()
    slurm(environment, "scontrol", "update", f"JobId={job}", "StartTime=now")


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


def test_runs_end_with_a_summary_also_after_usr2(two_nodes: Environment, tmp_path: Path) -> None:
    """All at once, since a requeued job waits for SLURM most of the time; two processes are the same run anywhere."""
    node, nodes = processes_per_node(4, 2), processes_per_node(4, 1)
    on_cpu = (*SHORT, "trainer.accelerator=cpu")
    one_node = submitted(two_nodes, tmp_path, "one_node.sbatch", node, *on_cpu)
    one_gpu = submitted(two_nodes, tmp_path, "one_gpu.sbatch", ON_CPU, *SHORT)
    interrupt(two_nodes, tmp_path, one_gpu)
    interrupt(two_nodes, tmp_path, one_node)
    several_nodes = submitted(two_nodes, tmp_path, "several_nodes.sbatch", nodes, *on_cpu)
    assert [row["round"] for row in table(two_nodes, tmp_path, one_gpu)] == [0, 1]
    assert table(two_nodes, tmp_path, one_node) == table(two_nodes, tmp_path, several_nodes)
    assert went_on(tmp_path, one_gpu)
    assert went_on(tmp_path, one_node)
    assert not went_on(tmp_path, several_nodes)


def test_a_teacher_has_a_node_of_its_own(two_nodes: Environment, tmp_path: Path) -> None:
    """Stand-ins for the two commands and for curl say where they run and how often; two processes a node."""
    place = tmp_path / "bin"
    place.mkdir()
    (place / "dagger-serve").write_text('#!/bin/sh\necho "$SLURMD_NODENAME $*" >> served\nsleep 600\n')
    (place / "dagger-train").write_text('#!/bin/sh\necho "$SLURMD_NODENAME $*" >> trained.$SLURM_PROCID\n')
    (place / "curl").write_text("#!/bin/sh\ntest -e served\n")
    for stand_in in place.iterdir():
        stand_in.chmod(0o755)
    changes = processes_per_node(4, 2) | {"source .venv/bin/activate": f"export PATH={place}:$PATH"}
    job = submitted(two_nodes | {"TEACHER_NODES": "1"}, tmp_path, "several_nodes.sbatch", changes, "seed=3")
    assert end_of(two_nodes, tmp_path, job) == "COMPLETED", said(tmp_path, job)
    node, _, served = (tmp_path / "served").read_text().partition(" ")
    asked = f"seed=3 teacher.endpoint.address=http://{node}:8001"
    assert served == f"teacher --run {asked} --tensor-parallel-size 2\n"
    trained = [path.read_text() for path in sorted(tmp_path.glob("trained.*"))]
    assert len(trained) == 2
    for line in trained:
        assert line.partition(" ")[0] != node
        assert line.endswith(f" {asked}\n")


def test_agents_are_told_the_sweep(two_nodes: Environment, tmp_path: Path) -> None:
    """A stand-in says with what `wandb` is started; what an agent does needs a server."""
    stand_in = tmp_path / "bin" / "wandb"
    stand_in.parent.mkdir()
    stand_in.write_text('#!/bin/sh\necho "wandb $* in $WANDB_DIR"\n')
    stand_in.chmod(0o755)
    changes = {"source .venv/bin/activate": f"export PATH={stand_in.parent}:$PATH"}
    name = "wandb_agent.sbatch"
    without = submitted(two_nodes, tmp_path, name, changes)
    array = two_nodes | {"SBATCH_ARRAY_INX": "0-1"}  # as `sbatch --array=0-1` says it
    job = submitted(array, tmp_path, name, changes, "me/it/abc")
    assert end_of(two_nodes, tmp_path, job) == "COMPLETED", said(tmp_path, job)
    assert said(tmp_path, job) == "wandb agent --forward-signals --count 1 me/it/abc in outputs\n" * 2
    assert end_of(two_nodes, tmp_path, without) == "FAILED"
    assert "give the sweep" in said(tmp_path, without)
