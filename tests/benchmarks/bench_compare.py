"""How long does `dagger-compare` take on many runs?

    python tests/benchmarks/bench_compare.py                      # 200 runs of 50 rounds, about half a minute
    python tests/benchmarks/bench_compare.py --runs 20 --rounds 5

Wanted for 200 runs: 5 s, as a process of its own, from its start to its end. The runs are written to a temporary folder
by the code that writes real ones: 40 groups of 5 seeds, evaluated on 200 tasks. Prints a table and a JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dagger_exp.store.compaction import compact
from dagger_exp.store.files import write_json
from dagger_exp.store.schema import to_table
from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

NUM_SEEDS = 5
NUM_TASKS = 200
NUM_TURNS = 12


def main() -> None:
    """Write runs, compare them, and print how long that took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for index in range(options.runs):
            write_run(Path(temporary) / f"run_{index:03d}", index // NUM_SEEDS, index % NUM_SEEDS, options.rounds)
        command = [sys.executable, "-c", "from dagger_exp.cli.compare import main; main()", temporary]
        began = time.perf_counter()
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures = {"runs": options.runs, "rounds": options.rounds, "compare_s": round(time.perf_counter() - began, 2)}
    print(output)
    print(json.dumps(figures))


def write_run(folder: Path, group: int, seed: int, num_rounds: int) -> None:
    """Write what a finished run leaves: manifest, status, summary, and the episodes of its last evaluation."""
    coins = random.Random(f"{group} {seed}")
    solved = [coins.random() < 0.5 + group / 100 for _ in range(NUM_TASKS)]
    rows = [round_row(index, coins) for index in range(num_rounds)]
    rows[-1]["eval/success_rate"] = sum(solved) / NUM_TASKS
    schedule = {"_target_": "dagger_exp.schedules.Linear", "start": group / 40, "end": 0.0}
    options = {f"option_{index}": index for index in range(60)}
    config = {"name": "dagger", "seed": seed, "schedule": schedule, "student": options, "env": {"num_bugs": 3}}
    write_json(folder / "manifest.json", {"schema_version": SCHEMA_VERSION, "config": config})
    write_json(folder / "status.json", {"state": "finished", "error": ""})
    write_json(folder / "summary.json", rows[-1] | {"rounds": rows})
    episodes = [episode(num_rounds - 1, index, is_solved) for index, is_solved in enumerate(solved)]
    evaluation = folder / "eval" / f"{num_rounds - 1:03d}" / "episodes.parquet"
    compact(evaluation, (to_table(folder.name, [played]) for played in episodes))


def round_row(index: int, coins: random.Random) -> dict[str, float]:
    """Return the metrics of a round, as many as a real one has."""
    names = (
        "num_labels num_teacher_queries num_turns num_episodes student_turn_rate agreement_rate success_rate".split()
    )
    row = {f"rollout/{name}": coins.random() * 500 for name in names} | {"round": index, "round/beta": 0.5}
    row |= {f"round/{name}": coins.random() for name in "loss num_tokens collect_s train_s evaluate_s".split()}
    row |= {"eval/success_rate": coins.random(), "eval/success_low": 0.0, "eval/success_high": 1.0}
    return row | {"eval/num_tasks": NUM_TASKS, "eval/num_failed": 0, "eval/malformed_rate": coins.random()}


def episode(round_index: int, index: int, is_solved: bool) -> Episode:
    """Return a played task of turns with tokens and text."""
    turns = tuple(
        Turn(
            turn_index=turn,
            actor=Actor.STUDENT,
            observation=f"observation {turn} of task {index}",
            context_ids=tuple(range(20)),
            starts_branch=turn == 0,
            response_text="cat file",
            response_ids=tuple(range(8)),
            sampling_logprobs=(-0.5,) * 8,
        )
        for turn in range(NUM_TURNS)
    )
    reason = StopReason.SOLVED if is_solved else StopReason.MAX_TURNS
    return Episode(round_index, index, f"heldout-{index:05d}", reason, turns)


if __name__ == "__main__":
    main()
