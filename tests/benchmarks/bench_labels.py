"""What becomes of labels that fail, and how many answers of the teacher does a budget of labels cost?

    python tests/benchmarks/bench_labels.py                  # a minute

Real collector, runner, chat and store; a scripted student acts in `repo_repair`, and the teacher answers after a
random time. The first table has 60 episodes of up to 100 turns whose teacher gives unusable answers at a rate: how
many episodes are kept, and how many of the good labels. The second collects 480 labels per round at several
concurrencies: `waste` is the number of answers asked for over the number of labels that the round holds. Round 0 knows
nothing of the length of an episode, later rounds know the mean of the round before.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagger_exp.chat.conversation import Chat
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.policies.llm import AnswerError, LanguagePolicy
from dagger_exp.policies.mixture import StudentOnly, TurnMixture
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Env, Mixing
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.schedules import Constant
from dagger_exp.seeding import uniform
from dagger_exp.store.store import Store
from dagger_exp.training.tokenizers import word_tokenizer
from dagger_exp.types import Response, State, Usage


@dataclass
class Teacher(ScriptedPolicy):
    """The world's teacher as a server would be: it takes its time, and some answers cannot be used."""

    failure_rate: float = 0.0
    latency_s: float = 0.0
    num_good: int = field(default=0, init=False)
    num_asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        super().__init__()

    async def act(self, state: State, env: Env) -> Response:
        self.num_asked += 1
        response = await super().act(state, env)
        await asyncio.sleep(2 * self.latency_s * uniform(state.key, "latency"))
        if uniform(state.key, "failure") < self.failure_rate:
            raise AnswerError("the answer was cut", Usage())
        self.num_good += 1
        return response


def collector(folder: Path, teacher: Teacher, mixing: Mixing, max_turns: int, concurrency: int) -> Collector:
    world = RepoRepair(max_turns=max_turns)
    tokenizer: Any = word_tokenizer(world.vocabulary())
    chat = Chat(tokenizer)
    return Collector(
        runner=Runner(
            world=world,
            student=LanguagePolicy(engine=ScriptedEngine(end_id=chat.end_id), chat=chat, max_new_tokens=8),
            teacher=teacher,
            mixing=mixing,
            labeler=Labeler(),
            chat=chat,
            max_context_tokens=100_000,
            max_attempts=2,
        ),
        store=Store(folder, "run"),
        plan=ShuffledTasks(tasks=world.tasks("train"), seed=0),
        concurrency=concurrency,
        keeps=EpisodeFilter(),
    )


def failing_labels(rate: float, mixing: Mixing, num_episodes: int = 60) -> str:
    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(failure_rate=rate)
        played = collector(Path(folder), teacher, mixing, max_turns=100, concurrency=16)
        episodes = played.collect(0, num_episodes=num_episodes)
    kept = [one for one in episodes if played.keeps(0, one.stop_reason)]
    labels = sum(one.num_labels for one in kept)
    turns = sum(len(one.turns) for one in episodes) / len(episodes)
    who = type(mixing).__name__
    return f"{who:14} {rate:6.1%} {turns:10.1f} {len(kept):6} of {num_episodes} {labels:8} of {teacher.num_good}"


def waste(concurrency: int, num_rounds: int) -> str:
    mixing = TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1))
    with tempfile.TemporaryDirectory() as folder:
        teacher = Teacher(latency_s=0.01)
        played = collector(Path(folder), teacher, mixing, max_turns=24, concurrency=concurrency)
        cells = []
        for round_index in range(num_rounds):
            before = teacher.num_asked
            episodes = played.collect(round_index, num_labels=480)
            asked = played.store.manifest(round_index)["counts"]["rollout/num_teacher_queries"]
            assert asked == teacher.num_asked - before
            cells.append(f"{asked / sum(one.num_labels for one in episodes):8.2f}")
    return f"{concurrency:11}" + "".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", nargs="+", type=float, default=[0.0, 0.001, 0.01, 0.1])
    parser.add_argument("--concurrency", nargs="+", type=int, default=[16, 64, 256])
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    print("who acts       failing  turns, mean  episodes kept  good labels kept")
    for mixing in (StudentOnly(), TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1))):
        for rate in args.rates:
            print(failing_labels(rate, mixing))
    print("\nconcurrency  waste of each round")
    for concurrency in args.concurrency:
        print(waste(concurrency, args.rounds))


if __name__ == "__main__":
    main()
