"""How long does `dagger-report` take for a run of 500 episodes, and how large is the page?

    python tests/benchmarks/bench_report.py                  # 500 episodes of 20 to 30 turns
    python tests/benchmarks/bench_report.py --build FOLDER   # makes the run folder only

Wanted: 5 s and 10 MB at most. The run is made in a temporary folder by the code that closes real rounds; the command
is timed as a person waits for it, with the start of the interpreter. Prints a table and a JSON line.
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

from dagger_exp.store.files import write_json
from dagger_exp.store.store import Store
from dagger_exp.types import SCHEMA_VERSION, Actor, Episode, StopReason, Turn

RUN_ID = "benchmark"
NUM_ROUNDS = 5
EPISODES = {"collect": 60, "evaluate": 40}
"""In each round."""
BETAS = (1.0, 0.5, 0.25, 0.125, 0.0)
ENDS = (*[StopReason.SOLVED] * 6, StopReason.UNSOLVED, StopReason.MAX_TURNS, StopReason.LOOP, StopReason.TIMEOUT)
ACTIONS = [f"{verb} {file}.py" for verb in ("open", "edit", "test") for file in ("parser", "lexer", "tokens", "main")]
WORDS = "def return import self value index error line test failed in for None é </script><script>boom()".split()


def main() -> None:
    """Make the run, time the command, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.build:
        build(options.build)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        num_turns = build(folder)
        command = [sys.executable, "-m", "dagger_exp.cli.report", str(folder)]
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - started
        megabytes = (folder / "report.html").stat().st_size / 1e6
    figures = {"episodes": NUM_ROUNDS * sum(EPISODES.values()), "turns": num_turns, "s": seconds, "MB": megabytes}
    for name, value in figures.items():
        print(f"{name:<10}{value:>12,.2f}")
    print(json.dumps(figures))


def build(folder: Path) -> int:
    """Write a finished run; return its number of turns."""
    coins, num_turns = random.Random(0), 0
    store, evaluations = Store(folder / "rounds", RUN_ID), Store(folder / "eval", RUN_ID)
    for round_index in range(NUM_ROUNDS):
        collected = [_episode(coins, round_index, index, BETAS[round_index]) for index in range(EPISODES["collect"])]
        evaluated = [_episode(coins, round_index, index, None) for index in range(EPISODES["evaluate"])]
        _close(store, round_index, collected)
        _close(evaluations, round_index, evaluated)
        num_turns += sum(len(episode.turns) for episode in collected + evaluated)
    config = {"name": "dagger", "seed": 0, "rounds": {"num_rounds": NUM_ROUNDS}}
    write_json(folder / "manifest.json", {"schema_version": SCHEMA_VERSION, "run_id": RUN_ID, "config": config})
    write_json(folder / "status.json", {"state": "finished", "error": ""})
    write_json(folder / "summary.json", {"rounds": [_row(index) for index in range(NUM_ROUNDS)]})
    return num_turns


def _close(store: Store, round_index: int, episodes: list[Episode]) -> None:
    store.commit(*episodes)
    store.close_round(round_index, len(episodes), {})


def _episode(coins: random.Random, round_index: int, index: int, beta: float | None) -> Episode:
    # Every third episode has no disagreement, as a good student's have not.
    agrees = index % 3 == 0
    turns = [_turn(coins, turn_index, beta, agrees=agrees) for turn_index in range(coins.randint(20, 30))]
    reason = coins.choice(ENDS)
    error = "The turn took longer than 600 s." if reason is StopReason.TIMEOUT else ""
    return Episode(round_index, index, f"task-{coins.randrange(10**5):05d}", reason, tuple(turns), error=error)


def _turn(coins: random.Random, turn_index: int, beta: float | None, *, agrees: bool) -> Turn:
    coin = None if beta is None else coins.random()
    by_teacher = beta is not None and coin is not None and coin < beta
    action = coins.choice(ACTIONS)
    label = action if by_teacher or agrees or coins.random() < 0.6 else coins.choice(ACTIONS)
    return Turn(
        turn_index=turn_index,
        actor=Actor.TEACHER if by_teacher else Actor.STUDENT,
        observation=_text(coins),
        context_ids=[7] * 100,
        starts_branch=turn_index == 0,
        response_text=action,
        response_ids=[8] * 10,
        sampling_logprobs=[-0.5] * 10,
        label_text=None if beta is None else label,
        label_ids=None if beta is None else [8] * 10,
        beta=beta,
        coin=coin,
        valid=by_teacher or coins.random() < 0.95,
    )


def _text(coins: random.Random) -> str:
    """Return an output as commands have them: mostly short, now and then very long."""
    num_lines = min(400, int(coins.lognormvariate(2.2, 1.2)) + 1)
    return "\n".join(" ".join(coins.choices(WORDS, k=9)) for _ in range(num_lines))


def _row(index: int) -> dict[str, float]:
    rate = index / NUM_ROUNDS
    return {
        "round": index,
        "round/beta": BETAS[index],
        "round/loss": 0.5 - 0.08 * index,
        "rollout/num_labels": 1500,
        "rollout/student_turn_rate": 1 - BETAS[index],
        "eval/success_rate": rate,
        "eval/success_low": max(0.0, rate - 0.08),
        "eval/success_high": min(1.0, rate + 0.08),
    }


if __name__ == "__main__":
    main()
