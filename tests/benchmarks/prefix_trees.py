"""What prefix trees save: tokens computed, and seconds of forward and backward, against one row per label.

    python tests/benchmarks/prefix_trees.py                        2 minutes on an idle core
    python tests/benchmarks/prefix_trees.py --turns 8 --repeats 1

The first table is about real DAgger episodes of repo_repair: tokens computed over different (prefix, token) pairs, 1 at
best, and the same with padding. The second is about synthetic episodes whose labels differ from the executed response
in every second turn. Both sides have the same budget of tokens per micro-batch and take turns, so that a busy machine
slows both. The naive side has what is fastest for it: the causal kernel without a mask, and logits at the labels only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from dagger_exp.chat.conversation import Chat
from dagger_exp.data.batches import Batch, MicroBatch, group_by_length, make_batch
from dagger_exp.data.prefix_tree import Row, grow
from dagger_exp.data.selection import label_rows
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.policies.mixture import TurnMixture
from dagger_exp.policies.scripted import ScriptedPolicy
from dagger_exp.protocols import Env
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.runner import Runner
from dagger_exp.schedules import Constant
from dagger_exp.training.losses import weighted_cross_entropy
from dagger_exp.training.module import StudentModule
from dagger_exp.training.student import from_scratch
from dagger_exp.types import Actor, Episode, Example, Key, Response, State, StopReason, Turn

PAD, WHOLE = 0, 1_000_000
TINY: dict[str, Any] = {"hidden_size": 128, "num_layers": 2, "num_heads": 4, "intermediate_size": 256}
"""As conf/student/tiny.yaml."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--episodes", type=int, default=4, help="of an optimizer step, in the second table")
    parser.add_argument("--max-tokens", type=int, default=8192, help="padded tokens of a micro-batch, on both sides")
    parser.add_argument("--repeats", type=int, default=5, help="the median counts")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"one thread of {os.cpu_count()} cores\n")
    print_redundancy(collect(num_episodes=300))
    print_speed(args.turns, args.episodes, args.max_tokens, args.repeats)


@dataclass(frozen=True, kw_only=True)
class ErringStudent(LanguagePolicy):
    """A student that knows the teacher and errs at a share of its turns; a turn, as always, ends with its token."""

    error_rate: float

    async def act(self, state: State, env: Env) -> Response:
        action = await ScriptedPolicy(error_rate=self.error_rate, id="student").act(state, env)
        prompt = self.chat.open(state.messages)
        return Response(action.message, self.chat.response_ids(action.message, prompt))


def collect(num_episodes: int) -> list[Episode]:
    """Return repo_repair episodes with beta 0.5, labelled at all turns; one in three student turns is random."""
    world = RepoRepair()
    tokenizer: Any = from_scratch(
        vocabulary=world.vocabulary(), tokenizer="words", max_context_tokens=1024, seed=0, **TINY
    ).tokenizer
    chat = Chat(tokenizer)
    engine = ScriptedEngine(end_id=chat.end_id)
    runner = Runner(
        world=world,
        student=ErringStudent(engine=engine, chat=chat, max_new_tokens=8, error_rate=1 / 3),
        teacher=ScriptedPolicy(),
        mixing=TurnMixture(schedule=Constant(start=0.5, end=0.5, num_rounds=1)),
        labeler=Labeler(),
        chat=chat,
        max_context_tokens=1024,
    )
    tasks = world.tasks("train")[:num_episodes]
    return [asyncio.run(runner.run(task, Key(0, 0, task.id, i))) for i, task in enumerate(tasks)]


def print_redundancy(episodes: Sequence[Episode]) -> None:
    print(
        "| repo_repair, beta 0.5 | trees of | different tokens | computed | ratio | ratio padded | one row per label |"
    )
    print("|---|---|---|---|---|---|---|")
    rows = [list(label_rows(episode, "token")) for episode in episodes]
    naive = sum(map(num_tokens, (row for some in rows for row in some)))
    different = sum(num_prefixes(some) for some in rows)
    for max_tree_tokens in (2048, 256, 128):
        trees = [tree for some in rows for tree in grow(some, max_tree_tokens)]
        computed = sum(map(len, trees))
        ratios = f"{computed / different:.3f} | {num_padded(trees) / different:.2f} | {naive / different:.2f}"
        print(f"| {len(episodes)} episodes | at most {max_tree_tokens} | {different} | {computed} | {ratios} |")


def num_padded(trees: Sequence[Example], batch_size: int = 16, max_tokens: int = 16384) -> int:
    """Return the tokens that the model computes with the padding of micro-batches, as in conf/train.yaml."""
    steps = [trees[begin : begin + batch_size] for begin in range(0, len(trees), batch_size)]
    groups = [group for step in steps for group in group_by_length(step, max_tokens)]
    return sum(len(group) * max(map(len, group)) for group in groups)


def num_tokens(row: Row) -> int:
    return len(row.prompt_ids) + len(row.label_ids)


def num_prefixes(rows: Sequence[Row]) -> int:
    """Return how many tokens differ from each other or in what stands before them, counted without a tree."""
    whole = [(*row.prompt_ids, *row.label_ids) for row in rows]
    return len({ids[:n] for ids in whole for n in range(1, len(ids) + 1)})


def print_speed(turns: Sequence[int], num_episodes: int, max_tokens: int, repeats: int) -> None:
    print("\n| turns | tokens naive | tokens tree | ratio | seconds naive | seconds tree | speed-up |")
    print("|---|---|---|---|---|---|---|")
    module = student_module(vocabulary_size=200)
    for num_turns in turns:
        episodes = [synthetic_episode(seed, num_turns) for seed in range(num_episodes)]
        naive, tree = naive_batch(episodes, max_tokens), tree_batch(episodes, max_tokens)
        losses = (partial(causal_loss, module), naive), (module.loss, tree)
        seconds = [[seconds_of(*side) for side in losses] for _ in range(repeats + 1)][1:]  # the first one warms up
        slow, fast = (median(column) for column in zip(*seconds, strict=True))
        speed_up = median(one / other for one, other in seconds)
        tokens = f"{naive.num_tokens} | {tree.num_tokens} | {naive.num_tokens / tree.num_tokens:.1f}"
        print(f"| {num_turns} | {tokens} | {slow:.2f} | {fast:.2f} | {speed_up:.1f} |", flush=True)


def student_module(vocabulary_size: int) -> StudentModule:
    words = [f"w{i}" for i in range(vocabulary_size)]
    student = from_scratch(vocabulary=words, tokenizer="words", max_context_tokens=8192, seed=0, **TINY)
    return StudentModule(student, optimizer=torch.optim.SGD, lr_scheduler=torch.optim.lr_scheduler.ConstantLR)


def synthetic_episode(seed: int, num_turns: int) -> Episode:
    """Return an episode of 40 observation and 20 response tokens a turn; every second label differs from its start."""
    rng = random.Random(seed)
    draw = partial(rng.choices, range(6, 200))
    turns = []
    for t in range(num_turns):
        response = draw(k=20)
        turn = Turn(
            turn_index=t,
            actor=Actor.STUDENT,
            observation="",
            context_ids=draw(k=40),
            starts_branch=t == 0,
            response_text="",
            response_ids=response,
            label_text="",
            label_ids=draw(k=20) if t % 2 else response,
        )
        turns.append(turn)
    return Episode(0, seed, "task", StopReason.SOLVED, turns)


def tree_batch(episodes: Sequence[Episode], max_tokens: int) -> Batch:
    trees = [tree for episode in episodes for tree in grow(label_rows(episode, "token"), WHOLE)]
    return make_batch([trees], 0, max_tokens, PAD, len(episodes))


def naive_batch(episodes: Sequence[Episode], max_tokens: int) -> Batch:
    """Return the same labels with one row each: a tree of its own."""
    chains = [tree for episode in episodes for row in label_rows(episode, "token") for tree in grow([row], WHOLE)]
    return make_batch([chains], 0, max_tokens, PAD, len(episodes))


def causal_loss(module: StudentModule, micro_batch: MicroBatch) -> Tensor:
    """Return the loss of rows without a branch; padding at their ends is seen by none of their tokens."""
    hidden = module.model.model(input_ids=micro_batch.input_ids, use_cache=False).last_hidden_state
    logits = module.model.lm_head(hidden[micro_batch.target_rows, micro_batch.target_parents])
    return weighted_cross_entropy(logits, micro_batch.target_ids, micro_batch.target_weights)


def seconds_of(loss: Callable[[MicroBatch], Tensor], batch: Batch) -> float:
    """Return how long forward and backward of a step take."""
    begin = time.perf_counter()
    for micro_batch in batch.micro_batches:
        (loss(micro_batch) / batch.total_weight).backward()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
