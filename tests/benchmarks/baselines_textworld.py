"""What do simple players reach on the held-out TextWorld games? Random walks, depth-first search, teacher.

    python tests/benchmarks/baselines_textworld.py --cache-folder ~/.cache/dagger_exp/textworld

`random commands` draws from all admissible commands, `random walk` from those that go or take; depth-first
search takes what it sees, goes through exits that it has not tried, and goes back where none is left.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence

from scipy.stats import binomtest

from dagger_exp.envs.textworld.env import TextWorldEnv
from dagger_exp.envs.textworld.world import TextWorld
from dagger_exp.seeding import integer
from dagger_exp.types import Key, Message, StopReason, Task

BACK = {"go north": "go south", "go south": "go north", "go east": "go west", "go west": "go east"}

Player = Callable[[str, TextWorldEnv], str]
"""Answers an observation with a command."""


def random_player(task: Task, seed: int, starts: tuple[str, ...] = ("",)) -> Player:
    """Draw uniformly from the admissible commands that start so."""
    turns = iter(range(1_000_000))

    def play(observation: str, env: TextWorldEnv) -> str:
        choices = [command for command in env.admissible_commands() if command.startswith(starts)]
        return choices[integer(Key(seed, 0, task.id, 0, next(turns)), "random player", len(choices))]

    return play


def depth_first_player() -> Player:
    """Explore a map without cycles, as those of coin collector; rooms are told apart by their names."""
    tried: dict[str, set[str]] = defaultdict(set)
    way_back: list[str] = []

    def play(observation: str, env: TextWorldEnv) -> str:
        room = observation.split(" . ")[0]
        commands = env.admissible_commands()
        takes = [command for command in commands if command.startswith("take ")]
        untried = [c for c in commands if c in BACK and c not in tried[room] and c not in way_back[-1:]]
        if takes:
            return takes[0]
        if not untried:
            return way_back.pop()
        tried[room].add(untried[0])
        way_back.append(BACK[untried[0]])
        return untried[0]

    return play


def teacher_player() -> Player:
    return lambda observation, env: env.expert_action().content


async def play_episode(world: TextWorld, task: Task, player: Player) -> tuple[bool, int, int]:
    """Return whether the game was won, the turns, and the words of all messages."""
    env = world.make(task)
    messages = list(await env.reset())
    stop_reason, num_turns = None, 0
    while stop_reason is None and num_turns < world.max_turns:
        action = Message("assistant", player(messages[-1].content, env))
        result = await env.step(action)
        messages += [action, result.observation]
        stop_reason, num_turns = result.stop_reason, num_turns + 1
    await env.close()
    num_words = sum(len(message.content.split()) for message in messages)
    return stop_reason is StopReason.SOLVED, num_turns, num_words


def report(name: str, episodes: Sequence[tuple[bool, int, int]], wall_time_s: float) -> None:
    solved, turns, words = zip(*episodes, strict=True)
    interval = binomtest(sum(solved), len(solved)).proportion_ci(method="wilson")
    rate = f"{sum(solved) / len(solved):.2f} [{interval.low:.2f}, {interval.high:.2f}]"
    sizes = f"median turns {statistics.median(turns):.0f}, median words {statistics.median(words):.0f}"
    print(f"{name:<18} solved {rate}  n={len(solved)}, {sizes}, {sum(turns) / wall_time_s:.0f} steps/s")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache-folder", default="outputs/cache/textworld")
    parser.add_argument("--mode", default="simple", choices=("simple", "random"), help="of coin collector")
    parser.add_argument("--num-rooms", type=int, default=12)
    parser.add_argument("--quest-length", type=int, default=6)
    parser.add_argument("--max-turns", type=int, default=30)
    parser.add_argument("--num-heldout-tasks", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=5, help="episodes per game of each random player")
    return parser.parse_args()


def main() -> None:
    arguments = vars(parse_arguments())
    num_seeds = arguments.pop("seeds")
    world = TextWorld(**arguments)
    tasks = world.tasks("heldout")
    players: dict[str, list[tuple[Task, Player]]] = {
        "random commands": [(task, random_player(task, seed)) for seed in range(num_seeds) for task in tasks],
        "random walk": [
            (task, random_player(task, seed, ("go ", "take "))) for seed in range(num_seeds) for task in tasks
        ],
        "depth-first search": [(task, depth_first_player()) for task in tasks],
        "teacher": [(task, teacher_player()) for task in tasks],
    }
    for name, games in players.items():
        start = time.perf_counter()
        episodes = [asyncio.run(play_episode(world, task, player)) for task, player in games]
        report(name, episodes, time.perf_counter() - start)


if __name__ == "__main__":
    main()
