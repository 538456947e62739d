"""Episodes of a few tokens, and a store full of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.data.datamodule import RoundDataModule
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.store.store import Store
from dagger_exp.types import Actor, Episode, StopReason, Turn

Triple = tuple[Sequence[int], Sequence[int], Sequence[int] | None]
"""Context, executed response and label of a turn."""
MakeEpisode = Callable[..., Episode]
MakeData = Callable[..., RoundDataModule]


def make_turn(turn_index: int, triple: Triple, actor: Actor = Actor.STUDENT) -> Turn:
    context_ids, response_ids, label_ids = triple
    return Turn(
        turn_index=turn_index,
        actor=actor,
        observation="",
        context_ids=context_ids,
        starts_branch=turn_index == 0,
        response_text="",
        response_ids=response_ids,
        label_text=None if label_ids is None else "",
        label_ids=label_ids,
    )


@pytest.fixture(scope="session")
def make_episode() -> MakeEpisode:
    """Give a function (triples of the turns, **fields of Episode) -> Episode."""

    def make(triples: Sequence[Triple], **changes: Any) -> Episode:
        fields: dict[str, Any] = {"round_index": 0, "episode_index": 0, "task_id": "task"}
        turns = [make_turn(t, triple) for t, triple in enumerate(triples)]
        return Episode(**fields | {"stop_reason": StopReason.SOLVED, "turns": turns} | changes)

    return make


@pytest.fixture
def make_data(tmp_path: Path) -> MakeData:
    """Give a function (episodes of each round, **options) -> RoundDataModule over the store of the test."""

    def make(rounds: Sequence[Sequence[Episode]], **changes: Any) -> RoundDataModule:
        store = Store(tmp_path / "rounds", "run")
        for round_index, episodes in enumerate(rounds):
            if not store.is_closed(round_index):
                for episode in episodes:
                    store.commit(episode)
                store.close_round(round_index, len(episodes), {})
        options: dict[str, Any] = {"seed": 0, "batch_size": 3, "max_tree_tokens": 64, "max_tokens": 64, "pad_id": 0}
        options["keeps"] = EpisodeFilter()
        return RoundDataModule(store=store, **options | changes)

    return make
