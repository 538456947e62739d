"""Kill a run (SIGKILL) at random moments, resume it, and hold what it leaves against an undisturbed run.

    python tests/benchmarks/kills.py --kills 20 --engine scripted
    python tests/benchmarks/kills.py --kills 20 --engine hf

A run is killed and resumed until it is finished; then the next one begins, until there were enough kills. For each
kill a phase is drawn (of collecting, closing, training, saving, evaluating), and a delay from the moment at which the
run is seen in it. Compared are, all but seconds: every row of the stores, the manifests of the rounds, `summary.json`,
`metrics.csv`, `failures.csv`, the evaluations and the weights. The exit code is 1 where anything differs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from dagger_exp.store.schema import TIME_COLUMNS

STORES = ("rounds", "eval", "validation")
PHASES = ("collecting", "closing", "training", "saving", "evaluating")
MAX_DELAY_S = {"collecting": 0.5, "closing": 0.005, "training": 0.3, "saving": 0.01, "evaluating": 0.1}
"""Longest delay between the sight of a phase and the kill."""
NOT_COMPARED = {"run_id", "sha256", "num_dropped", *TIME_COLUMNS}
"""How many episodes were begun in vain does depend on the clock."""
MAX_MISSED = 4
"""Runs in a row that come to their end without a kill, before this gives up."""
OVERRIDES = (
    "logger=csv",
    "rounds.num_rounds=2",
    "rounds.labels=120",
    "rounds.steps=10",
    "rounds.batch_size=4",
    "callbacks.checkpoint_steps=2",
    "evaluation.tasks=10",
)
FORKS = multiprocessing.get_context("forkserver")
"""Runs are forked from a process that has imported what all of them import."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--engine", choices=("scripted", "hf"), default="scripted")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    os.environ |= {"PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    FORKS.set_forkserver_preload(["__main__", "dagger_exp.cli.train", "dagger_exp.config.build", "lightning"])
    with tempfile.TemporaryDirectory() as scratch:
        sys.exit(1 if kill_and_compare(Path(scratch), args.engine, args.kills, random.Random(args.seed)) else 0)


def kill_and_compare(scratch: Path, engine: str, num_kills: int, rng: random.Random) -> list[str]:
    """Return what differs."""
    whole, hits, differences, num_runs = scratch / "whole", Counter[str](), list[str](), 0
    num_missed = 0
    if end(start(whole, engine)) != 0:
        return [output(whole)]
    while hits.total() < num_kills and not differences:
        folder, num_runs = scratch / str(num_runs), num_runs + 1
        before = hits.total()
        while (code := killed(folder, engine, num_kills - hits.total(), rng, hits)) is None:
            pass
        found = compare(whole, folder) if code == 0 else [f"exit code {code}: {output(folder)}"]
        num_missed = num_missed + 1 if hits.total() == before else 0
        found += ["the drawn phases are never seen"] if num_missed == MAX_MISSED else []
        print(f"run {num_runs}: {'; '.join(found) or 'equal to the undisturbed run'}", flush=True)
        differences += found
    print(f"engine={engine}: {hits.total()} kills in {num_runs} runs hit {dict(hits)}; {len(differences)} differences")
    return differences


def killed(folder: Path, engine: str, num_left: int, rng: random.Random, hits: Counter[str]) -> int | None:
    """Start or resume a run and kill it; return its exit code where it came to its end, None where it was killed."""
    wanted = rng.choice(PHASES)
    delay = rng.uniform(0, MAX_DELAY_S[wanted])
    process = start(folder, engine)
    while num_left and process.is_alive():
        if phase(folder) == wanted:
            time.sleep(delay)
            hit = phase(folder)
            process.kill()
            if end(process) < 0:
                hits[hit] += 1
                print(f"kill {hits.total()}: aimed at {wanted}, hit {hit}", flush=True)
                return None
    return end(process)


def start(folder: Path, engine: str) -> ForkServerProcess:
    """Start a run in a folder, or resume the one that is there; its output goes to a file beside."""
    is_there = (folder / ".hydra" / "config.yaml").exists()
    choices = [f"resume={folder}"] if is_there else [*OVERRIDES, f"engine={engine}", f"hydra.run.dir={folder}"]
    folder.with_suffix(".out").write_text("")
    process = FORKS.Process(target=run, args=(choices, folder.with_suffix(".out")))
    process.start()
    return process


def run(choices: list[str], out: Path) -> None:
    """Be the command `dagger-train`."""
    with out.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["dagger-train", *choices]
    importlib.import_module("dagger_exp.cli.train").main()


def end(process: ForkServerProcess) -> int:
    """Wait for the end of a run; return its exit code, which is negative after a kill."""
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def output(folder: Path) -> str:
    """Return what the run has printed since it was started."""
    return folder.with_suffix(".out").read_text()


def phase(folder: Path) -> str:
    """Return what a run is doing, by what it has printed and by the files that lie there."""
    if list(folder.glob("checkpoints/*.tmp")):
        return "saving"
    said = re.findall(r"round \d+/\d+ +(collect|train|evaluate)", output(folder))
    if not said:
        return "starting"
    for parquet in folder.glob("rounds/*/episodes.parquet*"):
        if not (parquet.parent / "manifest.json").exists() or (parquet.parent / "episodes").exists():
            return "closing"
    return {"collect": "collecting", "train": "training", "evaluate": "evaluating"}[said[-1]]


def compare(whole: Path, folder: Path) -> list[str]:
    """Return in what a run differs from the undisturbed one."""
    one, other = contents(whole), contents(folder)
    return [f"{name} differs" for name in sorted(one | other) if one.get(name) != other.get(name)]


def contents(folder: Path) -> dict[str, Any]:
    """Return everything that a run must leave, without seconds."""
    found: dict[str, Any] = {"leftovers": [str(path.relative_to(folder)) for path in folder.rglob("*.tmp")]}
    for path in [path for store in STORES for path in folder.glob(f"{store}/*/episodes.parquet")]:
        table = pq.read_table(path)
        found[str(path.relative_to(folder))] = repr(
            table.drop_columns(sorted(NOT_COMPARED & {*table.column_names})).to_pylist()
        )
    for path in [path for store in STORES for path in folder.glob(f"{store}/*/manifest.json")]:
        found[str(path.relative_to(folder))] = without_seconds(json.loads(path.read_text()))
    for name in ("metrics.csv", "failures.csv"):
        with (folder / name).open(newline="") as file:
            found[name] = [without_seconds(row) for row in csv.DictReader(file)]
    found["summary.json"] = without_seconds(json.loads((folder / "summary.json").read_text()))
    found["weights"] = hashlib.sha256((folder / "student" / "model.safetensors").read_bytes()).hexdigest()
    return found | {"status.json": json.loads((folder / "status.json").read_text())["state"]}


def without_seconds(value: Any) -> Any:
    """Return the same without what the clock decides."""
    if isinstance(value, dict):
        kept = {name: part for name, part in value.items() if name not in NOT_COMPARED and not name.endswith("_s")}
        return {name: without_seconds(part) for name, part in kept.items()}
    return [without_seconds(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
