"""Episodes to store, and a folder for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.store.store import Store
from dagger_exp.types import Actor, Episode, StopReason, Turn

MakeEpisode = Callable[..., Episode]


def make_turn(turn_index: int) -> Turn:
    """Return a turn of which every second one is labelled."""
    labelled = turn_index % 2 == 0
    return Turn(
        turn_index=turn_index,
        actor=Actor.STUDENT if labelled else Actor.TEACHER,
        observation=f"observation {turn_index}",
        context_ids=(turn_index, 7),
        starts_branch=turn_index == 0,
        response_text="look",
        response_ids=(8, 9),
        sampling_logprobs=(-0.5, -0.25),
        label_text="go" if labelled else None,
        label_ids=(10,) if labelled else None,
        wall_time_s=0.125,
    )


@pytest.fixture
def make_episode() -> MakeEpisode:
    """Give a function (episode_index, num_turns, **fields of Episode) -> Episode."""

    def make(episode_index: int, num_turns: int = 3, **changes: Any) -> Episode:
        fields: dict[str, Any] = {
            "round_index": 0,
            "episode_index": episode_index,
            "task_id": f"task-{episode_index}",
            "stop_reason": StopReason.SOLVED,
            "turns": tuple(make_turn(turn_index) for turn_index in range(num_turns)),
        }
        return Episode(**fields | changes)

    return make


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Give the place of a `rounds/` folder that does not exist yet."""
    return tmp_path / "rounds"


@pytest.fixture
def store(folder: Path) -> Store:
    """Give an empty store of run-a."""
    return Store(folder, "run-a")
