"""Which plain values has a run, of which type and in which range?

Components stay `_target_` nodes: `binding` holds them against their constructors.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING


def _value(wanted: str, holds: Callable[[Any], bool]) -> Any:
    return dataclasses.field(default=MISSING, metadata={"wanted": wanted, "holds": holds})


def _at_least(low: int) -> Any:
    return _value(f"at least {low}", lambda value: low <= value < math.inf)


def _positive() -> Any:
    return _value("above 0", lambda value: value > 0)


def _within(low: float, high: float) -> Any:
    return _value(f"between {low:g} and {high:g}", lambda value: low <= value <= high)


def _one_of(*choices: str) -> Any:
    return _value(f"one of {', '.join(choices)}", lambda value: value in choices)


@dataclass
class Rounds:
    """Lengths; see conf/train.yaml for the units."""

    num_rounds: int = _at_least(1)
    labels: Any = MISSING
    tasks: int | None = _at_least(1)
    steps: Any = MISSING
    epochs_per_round: int = _at_least(1)
    batch_size: int = _at_least(1)
    max_tree_tokens: int = _at_least(1)
    max_tokens: int = _at_least(1)


@dataclass
class Rollout:
    """How episodes are collected."""

    episodes_per_task: int = _at_least(1)
    temperature: float = _at_least(0)
    top_p: float = _value("above 0 and at most 1", lambda value: 0 < value <= 1)
    max_new_tokens: int = _at_least(1)
    max_observation_chars: int | None = _at_least(2)
    concurrency: int = _at_least(1)
    turn_timeout_s: float = _positive()
    episode_timeout_s: float = _positive()
    round_timeout_s: float | None = _positive()
    watchdog_s: float = _positive()
    max_attempts: int = _at_least(1)


@dataclass
class Budget:
    """What the teacher may cost."""

    tokens_per_round: int | None = _at_least(1)
    tokens_per_run: int | None = _at_least(1)
    cost_per_round: float | None = _positive()
    cost_per_run: float | None = _positive()
    prompt_price: float = _at_least(0)
    response_price: float = _at_least(0)


@dataclass
class Evaluation:
    """How the student is evaluated."""

    tasks: int = _at_least(1)
    validation_tasks: int = _at_least(0)
    seed: int = MISSING
    temperature: float = _at_least(0)
    concurrency: int = _at_least(1)
    stop_at_success: float | None = _within(0, 1)


@dataclass
class Labeler:
    """What the teacher says of visited states; `rollout.labeler` says what may be."""

    turns: str = MISSING
    logprobs: bool = MISSING
    num_top: int = MISSING


@dataclass
class Filter:
    """Which episodes are trained on; `data.selection` says what may be."""

    keep: str = MISSING
    warmup_rounds: int = _at_least(0)
    keep_cut: bool = MISSING


@dataclass
class Loss:
    """What weighs how much."""

    normalize: str = _one_of("token", "turn", "episode")


@dataclass
class Callbacks:
    """What happens beside the training."""

    checkpoint_steps: int = _at_least(1)


@dataclass
class Paths:
    """Where files go."""

    output_folder: str = MISSING
    cache_folder: str = MISSING


@dataclass
class RunConfig:
    """A run: plain values are typed here, components are nodes with a `_target_`."""

    name: str = MISSING
    sweep_name: str | None = MISSING
    seed: int = MISSING
    num_threads: int = _at_least(1)
    aggregation: str = _one_of("union", "latest", "window")
    window: int = _at_least(1)
    keep_students: str = _one_of("all", "best", "last")
    max_grad_norm: float | None = _positive()
    rounds: Rounds = MISSING
    rollout: Rollout = MISSING
    teacher_budget: Budget = MISSING
    evaluation: Evaluation = MISSING
    env: Any = MISSING
    scaffold: Any = MISSING
    sandbox: Any = MISSING
    student: Any = MISSING
    teacher: Any = MISSING
    demonstrations: Any = MISSING
    engine: Any = MISSING
    mixing: Any = MISSING
    schedule: Any = MISSING
    labeler: Labeler = MISSING
    filter: Filter = MISSING
    loss: Loss = MISSING
    optimizer: Any = MISSING
    lr_scheduler: Any = MISSING
    trainer: Any = MISSING
    callbacks: Callbacks = MISSING
    logger: Any = MISSING
    paths: Paths = MISSING


@dataclass
class CollectConfig(RunConfig):
    """A collection without training."""

    store: str | None = MISSING


def register_schema() -> None:
    """Make the schemas known to Hydra; `defaults` lists name them."""
    store = ConfigStore.instance()
    store.store(name="schema", node=RunConfig)
    store.store(name="collect_schema", node=CollectConfig)
