"""How fast does a large store open and give random batches, and how much memory does it hold?

    python tests/benchmarks/bench_store.py                       # 1M short turns, about two minutes
    python tests/benchmarks/bench_store.py --turns 60000 --context-ids 500 --response-ids 150

Wanted for 1M turns: open in 2 s, 300 MB resident, a random batch of 16 episodes in 50 ms. The store is built
in a temporary folder by the code that closes real rounds and is read in a fresh process. Prints a table and a
JSON line. Resident memory counts the touched pages of the mapped files, which the system takes back at will.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from dagger_exp.store.schema import to_table
from dagger_exp.store.store import Store
from dagger_exp.store.view import table_to_bytes
from dagger_exp.types import Actor, Episode, StopReason, Turn

RUN_ID = "benchmark"
NUM_ROUNDS = 5
BATCH_SIZE = 16
NUM_BATCHES = 50


def main() -> None:
    """Build a store, measure it in a process of its own, and print what was measured."""
    options = _options()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "rounds"
        figures = build(folder, options.turns, options.context_ids, options.response_ids)
        command = [sys.executable, __file__, "--measure", str(folder)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        figures |= json.loads(output)
    for name, value in figures.items():
        print(f"{name:<22}{value:>14,.3f}" if isinstance(value, float) else f"{name:<22}{value:>14,}")
    print(json.dumps(figures))


def build(folder: Path, num_turns: int, num_context_ids: int, num_response_ids: int) -> dict[str, float]:
    """Write closed rounds of about so many turns in all; return how long closing took and their size."""
    store, coins, close_s = Store(folder, RUN_ID), random.Random(0), 0.0
    for round_index in range(NUM_ROUNDS):
        # Episodes are written without the fsync of `Store.commit`, which takes minutes.
        store.episodes_folder(round_index).mkdir(parents=True)
        turns, episode_index = 0, 0
        while turns < num_turns // NUM_ROUNDS:
            episode = _episode(round_index, episode_index, coins, num_context_ids, num_response_ids)
            path = store.episodes_folder(round_index) / f"{episode_index:06d}.arrows"
            path.write_bytes(table_to_bytes(to_table(RUN_ID, [episode])))
            turns += len(episode.turns)
            episode_index += 1
        begin = time.perf_counter()
        store.close_round(round_index, episode_index, {})
        close_s += time.perf_counter() - begin
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    return {"close_s_per_round": close_s / NUM_ROUNDS, "parquet_mb": size / 1e6}


def measure(folder: Path) -> dict[str, float]:
    """Open the store and read random batches; times in s and ms, memory in MB of this process alone."""
    before, begin = _resident_mb(), time.perf_counter()
    store = Store.open(folder)
    reader = store.read(*store.rounds())
    open_s, opened = time.perf_counter() - begin, _resident_mb()
    num_task_ids = len(set(reader.task_ids))
    coins, batch_ms = random.Random(1), []
    for _ in range(NUM_BATCHES):
        indices = coins.sample(range(len(reader)), BATCH_SIZE)
        begin = time.perf_counter()
        reader.episodes(indices)
        batch_ms.append(1000 * (time.perf_counter() - begin))
    return {
        "num_turns": int(reader.num_turns.sum()),
        "num_episodes": len(reader),
        "num_task_ids": num_task_ids,
        "open_s": open_s,
        "resident_before_mb": before,
        "resident_opened_mb": opened,
        "resident_end_mb": _resident_mb(),
        "batch_median_ms": statistics.median(batch_ms),
        "batch_p95_ms": statistics.quantiles(batch_ms, n=20)[-1],
    }


def _episode(round_index: int, episode_index: int, coins: random.Random, *num_ids: int) -> Episode:
    turns = [_turn(index, coins, *num_ids) for index in range(coins.randint(6, 18))]
    stop_reason = coins.choice([StopReason.SOLVED, StopReason.UNSOLVED, StopReason.MAX_TURNS])
    task_id = f"task-{coins.randrange(10_000):05d}"
    return Episode(round_index, episode_index, task_id, stop_reason, turns, teacher_id="teacher", engine="hf")


def _turn(turn_index: int, coins: random.Random, num_context_ids: int, num_response_ids: int) -> Turn:
    def ids(count: int) -> list[int]:
        return [coins.randrange(50_000) for _ in range(count)]

    words = [f"{number:x}" for number in ids(num_context_ids)]
    return Turn(
        turn_index=turn_index,
        actor=coins.choice([Actor.STUDENT, Actor.TEACHER]),
        observation=" ".join(words),
        context_ids=ids(num_context_ids),
        starts_branch=turn_index == 0,
        response_text=" ".join(words[:num_response_ids]),
        response_ids=ids(num_response_ids),
        sampling_logprobs=[-coins.random() for _ in range(num_response_ids)],
        label_text=" ".join(words[-num_response_ids:]),
        label_ids=ids(num_response_ids),
        beta=0.5,
        coin=coins.random(),
        wall_time_s=coins.random(),
    )


def _resident_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0]) * 1024 / 1e6


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=1_000_000)
    parser.add_argument("--context-ids", type=int, default=12)
    parser.add_argument("--response-ids", type=int, default=5)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
