"""The software-repair game: its rules, its teacher, and what its tasks promise."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagger_exp.envs.repo_repair import RepoRepair, RepoRepairEnv
from dagger_exp.errors import ConfigError
from dagger_exp.types import Key, Message, StepResult, StopReason, Task

WORLD = RepoRepair()
TASK = Task("t", "train", {"files": ["f2", "f0", "f1"], "bugs": [("s1", "f0", "3"), ("s2", "f2", "7")]})
FIRST_FIXED = ["edit f0 3"]
ALL_FIXED = ["edit f0 3", "edit f2 7"]
Player = Callable[[RepoRepairEnv, str, int], str]


def execute(*commands: str) -> tuple[RepoRepairEnv, list[StepResult]]:
    async def script() -> tuple[RepoRepairEnv, list[StepResult]]:
        env = WORLD.make(TASK)
        await env.reset()
        return env, [await env.step(Message("assistant", command)) for command in commands]

    return asyncio.run(script())


def answer(*commands: str) -> str:
    return execute(*commands)[1][-1].observation.content


def play(task: Task, player: Player, world: RepoRepair = WORLD, max_turns: int | None = None) -> StopReason:
    """Return how an episode ends in which `player(env, last observation, turn)` gives the commands."""

    async def script() -> StopReason:
        env = world.make(task)
        observation = (await env.reset())[0].content
        for turn_index in range(max_turns or world.max_turns):
            result = await env.step(Message("assistant", player(env, observation, turn_index)))
            observation = result.observation.content
            if result.stop_reason is not None:
                return result.stop_reason
        return StopReason.MAX_TURNS

    return asyncio.run(script())


def teacher(env: RepoRepairEnv, observation: str, turn_index: int) -> str:
    return env.expert_action().content


def test_the_opening_names_the_files() -> None:
    assert asyncio.run(WORLD.make(TASK).reset()) == [Message("user", "repo f2 f0 f1")]


@pytest.mark.parametrize(
    ("commands", "observation"),
    [
        (["test"], "fail s1"),
        ([*FIRST_FIXED, "test"], "fail s2"),
        ([*ALL_FIXED, "test"], "pass"),
        (["open f0"], "f0 line 3"),
        (["open f1"], "f1 clean see f0"),
        (["open f2"], "f2 clean see f0"),
        ([*FIRST_FIXED, "open f0"], "f0 clean see f2"),
        ([*ALL_FIXED, "open f0"], "f0 clean"),
        (["edit f0 3"], "ok"),
        (["edit f0 4"], "ok"),
        (["edit f0 4", "test"], "err broken f0"),
        (["edit f1 3", "edit f0 3"], "err broken f1"),
        (["edit f1 3", "open f0"], "f0 line 3"),
        (["edit f1 3", "revert f1"], "ok"),
        (["edit f1 3", "revert f1", "test"], "fail s1"),
        (["edit f2 7", "test"], "err broken f2"),
        ([*ALL_FIXED, "edit f0 3", "test"], "err broken f0"),
        (["  edit   f0 3\n", "test"], "fail s2"),
        (["submit"], "ok"),
    ],
    ids=" / ".join,
)
def test_rules(commands: list[str], observation: str) -> None:
    assert answer(*commands) == observation
    assert execute(*commands)[1][-1].valid


@pytest.mark.parametrize(
    "command",
    [
        "",
        "fly",
        "test f0",
        "open",
        "open f5",
        "open f0 f1",
        "edit f0",
        "edit f0 99",
        "edit f5 3",
        "revert f0",
        "submit now",
    ],
)
def test_anything_else_is_an_error_and_changes_nothing(command: str) -> None:
    env, results = execute(command)
    assert results == [StepResult(Message("user", "err"), valid=False)]
    assert env == execute()[0]


@pytest.mark.parametrize(
    ("commands", "solved"),
    [
        ([], False),
        (FIRST_FIXED, False),
        (ALL_FIXED, True),
        ([*ALL_FIXED, "edit f1 0"], False),
        ([*ALL_FIXED, "edit f1 0", "revert f1"], True),
    ],
)
def test_submit_ends_the_episode(commands: list[str], solved: bool) -> None:
    *before, last = execute(*commands, "submit")[1]
    assert all(result.stop_reason is None and result.reward == 0.0 for result in before)
    assert last.stop_reason is (StopReason.SOLVED if solved else StopReason.UNSOLVED)
    assert last.reward == float(solved)


def test_the_teacher_looks_before_it_edits_and_tests_before_it_submits() -> None:
    commands = list[str]()
    play(TASK, lambda env, *_: commands.append(env.expert_action().content) or commands[-1])
    assert commands == ["test", "open f0", "edit f0 3", "test", "open f2", "edit f2 7", "test", "submit"]


@pytest.mark.parametrize(
    ("commands", "action"),
    [
        (["open f1"], "open f0"),
        (["open f0"], "edit f0 3"),
        (["open f0", "edit f0 4"], "revert f0"),
        (["open f0", "edit f0 4", "revert f0"], "edit f0 3"),
        (["edit f1 0"], "revert f1"),
        ([*ALL_FIXED, "test", "edit f1 0", "revert f1"], "test"),
    ],
)
def test_what_the_teacher_does_in_states_that_it_never_visits(commands: list[str], action: str) -> None:
    assert execute(*commands)[0].expert_action() == Message("assistant", action)


def test_the_teacher_solves_every_task() -> None:
    assert all(play(task, teacher) is StopReason.SOLVED for task in WORLD.tasks("heldout")[:200])


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_the_teacher_recovers_from_any_state(index: int, num_random: int) -> None:
    def wanders(env: RepoRepairEnv, observation: str, turn_index: int) -> str:
        command = env.random_action(Key(0, 0, "t", index, turn_index)).content
        return teacher(env, observation, turn_index) if turn_index >= num_random or command == "submit" else command

    assert play(WORLD.tasks("train")[index], wanders, max_turns=num_random + 12) is StopReason.SOLVED


def test_random_actions_are_understood_and_drawn_evenly_by_verb() -> None:
    env = WORLD.make(TASK)
    commands = [env.random_action(Key(0, 0, "t", index)).content.split() for index in range(2000)]
    assert {len(command) for command in commands} == {1, 2, 3}
    for verb in ("test", "open", "edit", "revert", "submit"):
        assert sum(command[0] == verb for command in commands) == pytest.approx(400, abs=70)
    assert {command[1] for command in commands if len(command) > 1} == set(env.files)
    assert env.random_action(Key(0, 0, "t", 3)) == env.random_action(Key(0, 0, "t", 3))


def follows_the_usual_file(world: RepoRepair) -> Player:
    """Return what imitates the teacher's own episodes perfectly: a symptom it has seen, the file it pointed to."""

    def command(env: RepoRepairEnv, observation: str, turn_index: int) -> str:
        match observation.split():
            case ["fail", symptom]:
                return f"open {world.usual_file(symptom)}"
            case [file, "line", line]:
                return f"edit {file} {line}"
            case [_, "clean", *_] | ["pass"]:
                return "submit"
            case _:
                return "test"

    return command


@pytest.mark.parametrize("reliability", [0.5, 0.75, 1.0])
def test_imitation_of_the_usual_succeeds_as_often_as_all_bugs_are_usual(reliability: float) -> None:
    world = RepoRepair(symptom_reliability=reliability)
    tasks = world.tasks("heldout")[:400]
    solved = sum(play(task, follows_the_usual_file(world), world) is StopReason.SOLVED for task in tasks)
    assert_rate(solved, len(tasks), reliability**world.num_bugs)


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"symptom_reliability": 0.3},
        {"num_bugs": 1},
        {"num_files": 2, "num_bugs": 1, "num_symptoms": 8},
        {"num_files": 2, "num_bugs": 2, "num_symptoms": 16},
        {"num_files": 8, "num_bugs": 7, "num_symptoms": 14},
    ],
)
def test_a_symptom_is_as_reliable_as_it_is_said_to_be(numbers: dict[str, Any]) -> None:
    world = RepoRepair(**numbers)
    bugs = [bug for task in world.tasks("train")[: 2000 // world.num_bugs] for bug in task.data["bugs"]]
    usual = sum(world.usual_file(symptom) == file for symptom, file, _ in bugs)
    assert_rate(usual, len(bugs), world.symptom_reliability)


def assert_rate(hits: int, trials: int, rate: float) -> None:
    assert hits / trials == pytest.approx(rate, abs=3.5 * math.sqrt(rate * (1 - rate) / trials) + 1e-9)


def test_the_bugs_of_a_task_have_files_and_symptoms_of_their_own() -> None:
    for task in WORLD.tasks("train")[:300]:
        symptoms, files, lines = zip(*task.data["bugs"], strict=True)
        assert len(set(symptoms)) == len(set(files)) == WORLD.num_bugs
        assert set(files) <= set(task.data["files"])
        assert len(set(task.data["files"])) == WORLD.num_files
        assert {WORLD.usual_file(symptom) for symptom in symptoms} <= set(task.data["files"])
        assert set(lines) <= {str(line) for line in range(WORLD.num_lines)}


def content(tasks: Sequence[Task]) -> set[str]:
    return {f"{sorted(task.data['files'])}{task.data['bugs']}" for task in tasks}  # in whatever order files are named


def test_the_held_out_tasks_are_those_of_the_published_figures() -> None:
    rows = [[task.id, task.data["files"], task.data["bugs"]] for task in WORLD.tasks("heldout")[:200]]
    assert hashlib.blake2b(json.dumps(rows).encode(), digest_size=8).hexdigest() == "6e5aef25f32b0136"


def test_no_two_splits_share_a_task_even_where_tasks_are_few() -> None:
    few = RepoRepair(num_files=2, num_bugs=1, num_lines=2, num_symptoms=8, num_train_tasks=3000)
    assert len(content(few.tasks("train"))) < 500
    for world in (few, WORLD):
        splits = [content(world.tasks(split)[:1000]) for split in ("train", "validation", "heldout")]
        assert not any(one & other for one, other in combinations(splits, 2))


def test_a_task_is_a_function_of_its_place_alone() -> None:
    tasks, again = WORLD.tasks("train"), RepoRepair(num_train_tasks=50).tasks("train")
    assert list(again) == tasks[:50] == [tasks[index] for index in range(50)]
    assert [tasks[index] for index in (40, 3)] == [again[40], again[3]]
    assert len({task.id for task in again}) == len(content(again)) == len(again) == 50
    assert tasks[99_999].id == "train-099999"
    with pytest.raises(IndexError):
        tasks[100_000]


def test_messages_hold_words_of_the_vocabulary_alone() -> None:
    vocabulary = WORLD.vocabulary()
    assert len(set(vocabulary)) == len(vocabulary)
    heard = list[str]()
    for index, task in enumerate(WORLD.tasks("train")[:50]):

        def wanders(env: RepoRepairEnv, observation: str, turn_index: int, index: int = index) -> str:
            heard.append(observation)
            heard.append(env.random_action(Key(1, 0, "t", index, turn_index)).content)
            return heard[-1]

        play(task, wanders)
    assert set(" ".join(heard).split()) <= set(vocabulary)


@pytest.mark.parametrize(
    ("numbers", "key"),
    [
        ({"num_files": 9}, "num_files"),
        ({"num_files": 1, "num_bugs": 1}, "num_files"),
        ({"num_bugs": 0}, "num_bugs"),
        ({"num_files": 3, "num_bugs": 4}, "num_bugs"),
        ({"num_symptoms": 7}, "num_symptoms"),
        ({"num_files": 2, "num_bugs": 2}, "num_symptoms"),
        ({"num_lines": 0}, "num_lines"),
        ({"max_turns": 0}, "max_turns"),
        ({"symptom_reliability": 1.5}, "symptom_reliability"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(numbers: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"env\..*{key}"):
        RepoRepair(**numbers)
