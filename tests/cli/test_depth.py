"""How deep is the way from the command to the coin? A reader has to follow every frame of it."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import dagger_exp
from dagger_exp.policies.mixture import TurnMixture
from dagger_exp.types import Choice, Key

MAX_FRAMES = 12
PACKAGE = str(Path(dagger_exp.__file__).parent)


def test_a_reader_comes_from_the_command_to_the_coin_in_a_dozen_frames(
    call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ways: set[tuple[str, ...]] = set()
    choose = TurnMixture.choose

    def recorded(mixing: TurnMixture, key: Key) -> Choice:
        frames = [frame for frame in traceback.extract_stack() if frame.filename.startswith(PACKAGE)]
        ways.add((*(frame.name for frame in frames), "choose"))
        return choose(mixing, key)

    monkeypatch.setattr(TurnMixture, "choose", recorded)
    quick = ("rounds.num_rounds=1", "rounds.labels=5", "rounds.steps=1", "env.num_bugs=1", "evaluation.tasks=1")
    assert call("train", "debug=default", *quick).code == 0
    # The event loop steps its tasks inside of `asyncio.run`, so a stack holds the way to the loop and that in the task.
    [way] = [way for way in ways if way[-2] == "_play"]  # others look ahead, see `lock_step`
    assert way[:3] == ("main", "run_command", "train")
    assert "ensure_round" in way
    assert len(way) <= MAX_FRAMES, way
