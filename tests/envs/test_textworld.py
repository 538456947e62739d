"""The TextWorld world on a few tiny games that are really made and played."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.envs.textworld import games
from dagger_exp.envs.textworld.env import TextWorldEnv
from dagger_exp.envs.textworld.rendering import RENDERINGS
from dagger_exp.envs.textworld.world import TextWorld
from dagger_exp.errors import ConfigError, EnvError
from dagger_exp.seeding import integer
from dagger_exp.types import Key, Message, StepResult, StopReason, Task

pytest.importorskip("textworld")

QUEST_LENGTH = 3
TINY: dict[str, Any] = {
    "num_rooms": 6,
    "quest_length": QUEST_LENGTH,
    "num_train_tasks": 3,
    "num_heldout_tasks": 2,
    "num_validation_tasks": 2,
    "num_workers": 1,
}
HUNT: dict[str, Any] = {
    **TINY,
    "family": "treasure_hunter",
    "mode": "hard",
    "objective": "goal",
    "show_admissible_commands": True,
    "instruction": "Find the treasure!",
}
Player = Callable[[TextWorldEnv, int], str]


@pytest.fixture(scope="module")
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("textworld")


@pytest.fixture(scope="module", params=[TINY, HUNT], ids=["coin_collector", "treasure_hunter"])
def world(request: pytest.FixtureRequest, cache_folder: Path) -> TextWorld:
    world = TextWorld(cache_folder=cache_folder, **request.param)
    assert world.vocabulary()  # Makes the games of both splits at once.
    return world


def all_tasks(world: TextWorld) -> Sequence[Task]:
    return [task for split in ("train", "validation", "heldout") for task in world.tasks(split)]


def teacher(env: TextWorldEnv, turn_index: int) -> str:
    return env.expert_action().content


def wanderer(task: Task) -> Player:
    """Looks around at random for ten turns, without taking anything, and then does what the teacher says."""

    def play(env: TextWorldEnv, turn_index: int) -> str:
        choices = [command for command in env.admissible_commands() if not command.startswith("take")]
        at_random = choices[integer(Key(0, 0, task.id, 0, turn_index), "wander", len(choices))]
        return at_random if turn_index < 10 else teacher(env, turn_index)

    return play


def play(world: TextWorld, task: Task, player: Player) -> tuple[list[Message], StopReason | None]:
    async def episode() -> tuple[list[Message], StopReason | None]:
        env = world.make(task)
        messages, stop_reason = list(await env.reset()), None
        for turn_index in range(world.max_turns):
            action = Message("assistant", player(env, turn_index))
            result = await env.step(action)
            messages += [action, result.observation]
            stop_reason = result.stop_reason
            if stop_reason is not None:
                break
        await env.close()
        return messages, stop_reason

    return asyncio.run(episode())


def test_the_teacher_solves_every_game(world: TextWorld) -> None:
    for task in all_tasks(world):
        messages, stop_reason = play(world, task, teacher)
        assert stop_reason is StopReason.SOLVED
        assert sum(message.role == "assistant" for message in messages) == QUEST_LENGTH


def test_the_teacher_recovers_from_states_that_random_actions_visit(world: TextWorld) -> None:
    assert all(play(world, task, wanderer(task))[1] is StopReason.SOLVED for task in all_tasks(world))


def test_messages_hold_words_of_the_vocabulary_alone(world: TextWorld) -> None:
    vocabulary = world.vocabulary()
    assert list(vocabulary) == sorted(set(vocabulary))
    for task in all_tasks(world):
        for message in play(world, task, wanderer(task))[0]:
            assert set(message.content.split()) <= set(vocabulary)


def test_train_and_held_out_games_share_no_seed_and_differ(cache_folder: Path) -> None:
    world = TextWorld(cache_folder=cache_folder, **TINY)
    seeds = {split: {task.data["seed"] for task in world.tasks(split)} for split in ("train", "validation", "heldout")}
    assert all(seeds.values())
    assert not any(one & other for one, other in combinations(seeds.values(), 2))
    used = [set(range(4 * seed, 4 * seed + 4)) for split in seeds for seed in seeds[split]]
    assert len(set().union(*used)) == 4 * len(used)
    openings = {play(world, task, teacher)[0][0].content for task in all_tasks(world)}
    assert len(openings) == len(used)
    with pytest.raises(ConfigError, match="where the validation games begin"):
        TextWorld(cache_folder=cache_folder, **TINY, seed_offset=5_000_000)


def test_a_hidden_objective_and_the_walkthrough_are_nowhere(cache_folder: Path) -> None:
    hidden = TextWorld(cache_folder=cache_folder, **TINY)
    task = hidden.tasks("train")[0]
    stored = json.loads(hidden._games.path(task.data["seed"]).read_text())
    assert stored["objective"] == ""
    assert "walkthrough" not in stored["metadata"]
    opening = play(hidden, task, teacher)[0][0].content
    assert re.fullmatch(r"[\w ]+ \. exits [a-z ,]+ \.", opening)
    shown = TextWorld(cache_folder=cache_folder, objective="shown", **{**TINY, "num_train_tasks": 1})
    assert play(shown, task, teacher)[0][0].content.endswith(f"\n{opening}")


def test_the_cache_is_reused_and_games_are_equal_when_made_again(
    cache_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TextWorld(cache_folder=cache_folder, **TINY)
    again = TextWorld(cache_folder=tmp_path, **TINY)
    assert again.vocabulary() == first.vocabulary()
    made_again = [play(again, task, wanderer(task)) for task in all_tasks(again)]
    monkeypatch.setattr(games, "ProcessPoolExecutor", None)  # Would fail where a game is made.
    assert [play(first, task, wanderer(task)) for task in all_tasks(first)] == made_again
    assert not list(cache_folder.glob("*/.making-*"))


def test_an_invalid_command_is_refused_and_changes_nothing(world: TextWorld) -> None:
    async def script() -> None:
        env = world.make(world.tasks("train")[0])
        opening = (await env.reset())[-1].content.splitlines()[-1]
        for nonsense in ("fly to the moon", "", "restart", "tw-trace-actions", "take"):
            result = await env.step(Message("assistant", nonsense))
            assert result == StepResult(Message("user", f"that does nothing . {opening}"), valid=False)
        result = await env.step(Message("assistant", f"  {env.expert_action().content.upper()}\n"))
        assert result.valid
        await env.close()

    asyncio.run(script())


def test_nothing_is_played_after_the_end(cache_folder: Path) -> None:
    async def script() -> None:
        world = TextWorld(cache_folder=cache_folder, **TINY)
        env = world.make(world.tasks("train")[0])
        await env.reset()
        results = [await env.step(env.expert_action()) for _ in range(QUEST_LENGTH)]
        assert [result.reward for result in results] == [0, 0, 1]
        with pytest.raises(EnvError):
            await env.step(Message("assistant", "look"))
        with pytest.raises(EnvError):
            env.expert_action()
        with pytest.raises(EnvError):
            await env.reset()
        await env.close()

    asyncio.run(script())


def test_the_wrong_treasure_loses(cache_folder: Path) -> None:
    world = TextWorld(cache_folder=cache_folder, **HUNT)
    losses = 0
    for task in all_tasks(world):
        messages, stop_reason = play(world, task, lambda env, _: _greedy(env))
        losses += stop_reason is StopReason.UNSOLVED
        assert (stop_reason is StopReason.UNSOLVED) == messages[-1].content.endswith("you lost .")
    assert losses


def _greedy(env: TextWorldEnv) -> str:
    takes = [command for command in env.admissible_commands() if command.startswith("take")]
    return takes[0] if takes else env.expert_action().content


def test_prose_is_that_of_the_compiled_game(tmp_path: Path) -> None:
    world = TextWorld(cache_folder=tmp_path, rendering="prose", **{**TINY, "num_train_tasks": 1})
    messages, stop_reason = play(world, world.tasks("train")[0], teacher)
    assert stop_reason is StopReason.SOLVED
    assert messages[0].content.startswith("-= ")
    assert "The End" in messages[-1].content
    assert not any("$$" in message.content or "\n>" in message.content for message in messages)
    assert world.vocabulary() == ()


def test_sparing_the_compiler_does_not_change_a_game() -> None:
    script = """
from dagger_exp.envs.textworld import games
settings = games.GameSettings("coin_collector", "simple", 4, 2, "shown", "short")
compiled = games._generate(settings, 0)
games._spare_the_compiler()
assert games._generate(settings, 0) == compiled
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_short_text_tells_doors_and_contents_but_not_what_is_closed() -> None:
    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name

    class Fact:
        def __init__(self, text: str) -> None:
            self.name, *names = text.split()
            self.arguments = [Thing(name) for name in names]

    told = "at P Hall|east_of Den Hall|free Hall Den|link Hall gate Den|open gate"
    told += "|north_of Loft Hall|link Hall hatch Loft|locked hatch"
    told += "|at box Hall|open box|in key box|at safe Hall|closed safe|in gem safe|in lamp I"
    state = {"facts": [Fact(text) for text in told.split("|")], "won": False, "lost": False}
    assert RENDERINGS["short"].observation(state) == (
        "hall . exits east . north locked hatch . east open gate . you see open box , closed safe . "
        "box holds key . you carry lamp ."
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"family": "chess"},
        {"mode": "hard"},
        {"objective": "loud"},
        {"rendering": "long"},
        {"num_rooms": 19},
        {"num_rooms": 5},
        {"num_train_tasks": 0},
        {"seed_offset": -1},
    ],
)
def test_wrong_settings_are_refused(wrong: dict, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        TextWorld(cache_folder=tmp_path, **wrong)


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise games.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(games.importlib.metadata, "version", missing)
    with pytest.raises(ConfigError, match=r"pip install dagger-exp\[textworld\]"):
        TextWorld(cache_folder=tmp_path)


def test_a_game_that_cannot_be_made_names_its_seed(tmp_path: Path) -> None:
    settings = {**TINY, "num_train_tasks": 1, "num_validation_tasks": 0, "seed_offset": 2**31}
    with pytest.raises(EnvError, match="seed 4294967296"):  # TextWorld's seeds end at 2**32.
        TextWorld(cache_folder=tmp_path, **settings).tasks("train")
