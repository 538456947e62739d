"""Two processes under DDP, started as a user starts them, are the single process, but for rounding."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from dagger_exp.store.schema import TIME_COLUMNS

SMALL = ("debug=default", "logger=csv", "rounds.steps=10", "callbacks.checkpoint_steps=4")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
SCRIPT = Path(sys.executable).with_name("dagger-train")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(*arguments: str, code: int = 0, term_at: Path | None = None) -> str:
    """Run the console script in a session of its own; return what it said once all of its processes have ended.

    Args:
        arguments: of the script.
        code: with which it must end.
        term_at: TERM goes to all of its processes once this file is there.
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    if term_at is not None:
        while process.poll() is None and not term_at.exists():
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGTERM)
    said = process.communicate()[0]  # ends when the last process has closed its end
    assert process.returncode == code, said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    return said


def stored(folder: Path, round_index: int) -> list[dict[str, Any]]:
    path = folder / "rounds" / f"{round_index:03d}" / "episodes.parquet"
    table = pq.read_table(path)
    return table.drop_columns(sorted({"run_id", *TIME_COLUMNS})).to_pylist()


def losses(folder: Path) -> list[float]:
    """Return the loss of every step, as the last checkpoint has them."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["callbacks"]["RoundCallback"]
    return [loss for round_losses in state["losses"].values() for loss in round_losses]


def coins(folder: Path, round_index: int) -> dict[tuple[str, int], tuple[str, float]]:
    """Return who acted at each turn of a round, and the coin that decided it."""
    rows = stored(folder, round_index)
    return {(row["task_id"], row["turn_index"]): (row["actor"], row["coin"]) for row in rows}


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    start(*SMALL, f"hydra.run.dir={one}")
    said = start(*SMALL, *DDP, f"hydra.run.dir={two}")
    for said_once in ("dagger-train: loading", "student of", "round 1/2 +train", "done in"):
        assert len(re.findall(said_once, said)) == 1, said

    assert stored(two, 0) == stored(one, 0)
    for round_index in (0, 1):
        mine, theirs = coins(one, round_index), coins(two, round_index)
        shared = mine.keys() & theirs.keys()  # rounding may change an action of round 1, and with it how long it takes
        assert {place: mine[place] for place in shared} == {place: theirs[place] for place in shared}
        assert {task for task, _ in mine} == {task for task, _ in theirs}
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(two)) == 20
    summary = json.loads((two / "summary.json").read_text())
    assert [row["round"] for row in summary["rounds"]] == [0, 1]
    assert json.loads((two / "status.json").read_text())["state"] == "finished"
    assert not list(two.rglob("*.tmp"))
    assert "nothing to do" in start(f"resume={two}")


def test_an_error_in_the_first_process_leaves_none_waiting(tmp_path: Path) -> None:
    folder = tmp_path / "failing"
    said = start(
        *SMALL,
        *DDP,
        "engine=scripted",
        "mixing=student",
        "schedule=none",
        "filter.keep=solved",
        f"hydra.run.dir={folder}",
        code=2,
    )
    assert said.count("no label that is trained on") == 1
    assert "Traceback" not in said
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"


def test_term_ends_all_processes_and_the_run_goes_on(tmp_path: Path) -> None:
    """Lightning's own handler would wait in TERM for the other processes, which wait in theirs."""
    folder = tmp_path / "run"
    # Many commits, so that the first is no end, and a row of metrics long before the last step.
    long = ("rounds.steps=[40,4]", "rounds.labels=[300,30]", "rollout.concurrency=2", f"hydra.run.dir={folder}")
    collecting, training = folder / "rounds/000/episodes/000000.arrows", folder / "metrics.csv"
    for arguments, term_at in (((*SMALL, *DDP, *long), collecting), ((f"resume={folder}",), training)):
        said = start(*arguments, code=143, term_at=term_at)
        assert said.count("Go on with") == 1, said
        assert json.loads((folder / "status.json").read_text())["state"] == "preempted"
    assert (folder / "rounds/000/manifest.json").exists()
    start(f"resume={folder}")
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
