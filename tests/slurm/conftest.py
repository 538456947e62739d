"""A SLURM cluster of two nodes on one machine: real munged, slurmctld and slurmd, started for the tests and stopped."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

Environment = dict[str, str]
PATIENCE_S = 900
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
NODES = ("localhost", "localhost2")
CLUSTER = """
ClusterName=tests
SlurmctldHost=localhost
SlurmctldPort={controller_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job is held until the credential of its last start has expired, usually after two minutes.
AuthInfo=socket={place}/munge/socket,cred_expire=15
CredType=cred/munge
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/%n_spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/%n.log
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
# The nodes may say that they have more cores than they have.
SlurmdParameters=config_overrides
# The name that leads a list of nodes is where processes meet, so it is one that resolves. It stands second here because
# SLURM takes a lone `localhost` for any node.
NodeName=localhost2 NodeAddr=127.0.0.1 Port={second_port} CPUs=4 State=UNKNOWN
NodeName=localhost NodeAddr=127.0.0.1 Port={node_port} CPUs=4 State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes=localhost MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=both Nodes=localhost,localhost2 MaxTime=INFINITE State=UP
"""
CGROUPS = """
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainCores=no
ConstrainRAMSpace=no
ConstrainSwapSpace=no
ConstrainDevices=no
"""
SACCT = Path(__file__).parents[2] / "slurm" / "sacct"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """Yield the environment in which SLURM's commands speak to this cluster."""
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    if missing := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("SLURM's daemons need root here")
    place = tmp_path_factory.mktemp("slurm")
    environment = configured(place)
    try:
        start(place, environment)
        yield environment
    finally:
        stop(place, environment)


def configured(place: Path) -> Environment:
    """Write the cluster's configuration; without accounting, `sacct` is the one that we ship."""
    for folder in (place, *place.parents):
        with suppress(PermissionError):
            folder.chmod(folder.stat().st_mode | 0o011)  # munged, another user, comes through
    for name in ("state", "munge", "bin"):
        (place / name).mkdir(mode=0o755)
    shutil.chown(place / "munge", "munge")
    text = CLUSTER.format(place=place, controller_port=free_port(), node_port=free_port(), second_port=free_port())
    (place / "slurm.conf").write_text(text)
    (place / "cgroup.conf").write_text(CGROUPS)
    (place / "bin" / "sacct").symlink_to(SACCT)
    path = f"{place}/bin{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "SLURM_CONF": str(place / "slurm.conf"), "PATH": path}


def start(place: Path, environment: Environment) -> None:
    """Start the daemons and wait until both nodes are idle."""
    munge = place / "munge"
    options = [f"--socket={munge}/socket", f"--pid-file={munge}/munged.pid", f"--log-file={munge}/munged.log"]
    keys = ["--key-file=/etc/munge/munge.key", f"--seed-file={munge}/seed"]
    for command in (
        ["runuser", "-u", "munge", "--", "munged", *keys, *options],
        ["slurmctld", "-c", "-i", "-f", environment["SLURM_CONF"]],  # -c: a state of before could drain the node
        *(["slurmd", "-c", "-f", environment["SLURM_CONF"], "-N", node] for node in NODES),
    ):
        subprocess.run(command, check=True, env=environment, timeout=120, stdout=subprocess.DEVNULL)
    asked = ("sinfo", "--noheader", "--format=%T %D", "--partition=both")
    until(lambda: slurm(environment, *asked) == "idle 2", f"no two idle nodes, see {place}/slurmctld.log")


def stop(place: Path, environment: Environment) -> None:
    """End the jobs and the daemons that `start` has started, by their ids."""
    with suppress(subprocess.SubprocessError):
        slurm(environment, "scancel", "--user=root")
        deadline = time.monotonic() + 120
        while slurm(environment, "squeue", "--noheader") and time.monotonic() < deadline:
            pass
    for name in (*(f"{node}.pid" for node in NODES), "slurmctld.pid", "munge/munged.pid"):
        with suppress(OSError, ValueError):
            pid = int((place / name).read_text())
            os.kill(pid, 15)
            deadline = time.monotonic() + 120
            while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
                pass


def slurm(environment: Environment, *command: str, place: Path | None = None) -> str:
    """Return what a command of SLURM prints; they can hang for ever, so each has a limit."""
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


def free_port() -> int:
    """Return a port of the loopback that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
