"""Which keys of a config change the outcome of a run? The one answer, for comparisons, sweeps and resumed runs."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from fnmatch import translate
from typing import Any

NO_OUTCOME = (
    # Names and places, and what W&B adds to a config.
    *("name", "sweep_name", "logger.*", "paths.*", "*.cache_folder", "overrides.*", "manifest.*", "_wandb.*"),
    # Where models are served, how requests are repeated, how weights get there and how closely that is checked.
    *("*.endpoint.*", "engine.addresses", "engine.server.*", "engine.weights", "engine.sleeps"),
    *("engine.probe_tolerance",),
    # When a run gives up on an episode, a round or the teacher's bill. A command's own time limit is not among them.
    *("rollout.*_timeout_s", "rollout.watchdog_s", "rollout.max_attempts", "teacher_budget.*"),
    *("trainer.strategy.round_timeout_hours",),
    # How much happens at once, and how often a run is saved.
    *("num_threads", "env.num_workers", "sandbox.max_live", "sandbox.num_ready", "callbacks.checkpoint_steps"),
    "keep_students",
)
"""Patterns of keys that do not change the outcome, as `fnmatch` reads them; `*` stands for dots too."""
NO_OUTCOME_SERVED = ("rollout.concurrency", "evaluation.concurrency")
"""More of them where a server generates; an engine in this process plays batches of that size, in step."""

Settings = Mapping[str, Hashable]
"""Keys of a config, such as `rounds.num_rounds`, with their values."""


def settings_of(config: Mapping[str, Any]) -> Settings:
    """Return the keys of a resolved config that change the outcome, the seed among them."""
    keys = flat(config)
    is_served = any(key.startswith("engine.endpoint.") for key in keys)
    ignored = _pattern(*NO_OUTCOME, *(NO_OUTCOME_SERVED if is_served else ()))
    return {key: _hashable(value) for key, value in keys.items() if not ignored.match(key)}


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a config with the keys that the command line takes: `{"rounds.num_rounds": 5, ...}`."""
    keys: dict[str, Any] = {}
    for key, value in config.items():
        keys |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return keys


def _pattern(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def _hashable(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple(sorted((key, _hashable(part)) for key, part in value.items()))
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
