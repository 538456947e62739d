"""Which tasks is a student evaluated on, and which worlds are refused?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dagger_exp.config.build import build_run, build_training
from dagger_exp.config.composing import compose_checked
from dagger_exp.config.evaluators import tasks_of
from dagger_exp.envs.repo_repair import RepoRepair
from dagger_exp.errors import ConfigError
from dagger_exp.training.progress import Silent


class TwoSplits(RepoRepair):
    """A world that knows no validation split."""

    def tasks(self, split: str) -> Any:
        return {"train": super().tasks("train"), "heldout": super().tasks("heldout")}[split]


class Mistaken(RepoRepair):
    """A world that takes every split but `train` for the held-out one."""

    def tasks(self, split: str) -> Any:
        return super().tasks("train" if split == "train" else "heldout")


@pytest.mark.parametrize(
    ("world", "said"),
    [
        (
            TwoSplits(),
            r"^the env has no validation split \(KeyError: 'validation'\): set evaluation.validation_tasks=0, ",
        ),
        (
            RepoRepair(num_validation_tasks=0),
            r"^the env's validation split is empty: set evaluation.validation_tasks=0, ",
        ),
    ],
)
def test_a_world_without_validation_tasks_is_refused(world: RepoRepair, said: str) -> None:
    assert tasks_of(world, "heldout")
    with pytest.raises(ConfigError, match=said):
        tasks_of(world, "validation")


def test_nothing_is_chosen_by_the_tasks_that_are_reported(tmp_path: Path) -> None:
    cfg = compose_checked("train", ["debug=default", "engine=scripted"])
    run = build_run(cfg, tmp_path, "run")
    mistaken = replace(run, world=Mistaken())
    with pytest.raises(ConfigError, match="validation and heldout splits share 2 tasks, as heldout-000000"):
        build_training(cfg, mistaken, "run", Silent())
