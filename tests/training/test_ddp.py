"""Two processes under DDP, started as a user starts them, are the single process, but for rounding."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dagger_exp.store.schema import TIME_COLUMNS
from dagger_exp.training.csv_logger import read_csv

SMALL = ("debug=default", "logger=csv", "rounds.steps=10", "callbacks.checkpoint_steps=4")
DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
SCRIPT = Path(sys.executable).with_name("dagger-train")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def start(*arguments: str, code: int = 0) -> str:
    """Run the console script in a session of its own; return what it said once all of its processes have ended."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(
        [SCRIPT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
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
    return [float(row["train/loss"]) for row in read_csv(folder / "metrics.csv") if row["trainer/global_step"]]


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    start(*SMALL, f"hydra.run.dir={one}")
    said = start(*SMALL, *DDP, f"hydra.run.dir={two}")
    assert said.count("dagger-train: loading") == said.count("student of") == said.count("done in") == 1
    assert said.count("round 1/2 train") == 1

    assert stored(two, 0) == stored(one, 0)
    for round_index in (0, 1):
        mine, theirs = (
            {(row["task_id"], row["turn_index"]): row["coin"] for row in stored(f, round_index)} for f in (one, two)
        )
        assert {place: mine[place] for place in mine.keys() & theirs.keys()} == {
            place: theirs[place] for place in mine.keys() & theirs.keys()
        }
        assert {place[0] for place in mine} == {place[0] for place in theirs}
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
        "filter=solved",
        f"hydra.run.dir={folder}",
        code=2,
    )
    assert said.count("no label that is trained on") == 1
    assert "Traceback" not in said
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
