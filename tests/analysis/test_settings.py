"""What is another run, and what is the same one elsewhere: asked of real configs."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from dagger_exp.analysis.settings import settings_of
from dagger_exp.cli.manifest import config_hash
from dagger_exp.config.composing import compose_checked

SERVED = ("engine=vllm", "teacher=vllm")
SAME = [
    ((), "logger=csv"),
    ((), "logger.project=other"),
    ((), "sweep_name=x"),
    ((), "paths.output_folder=/elsewhere"),
    (("env=textworld",), "paths.cache_folder=/elsewhere"),
    ((), "num_threads=2"),
    ((), "rollout.turn_timeout_s=7"),
    ((), "rollout.episode_timeout_s=7"),
    ((), "rollout.round_timeout_s=7"),
    ((), "rollout.watchdog_s=7"),
    ((), "rollout.max_attempts=3"),
    ((), "teacher_budget.tokens_per_run=1000000"),
    ((), "teacher_budget.cost_per_round=5"),
    ((), "callbacks.checkpoint_steps=7"),
    (SERVED, "engine.addresses=[http://elsewhere:8000]"),
    (SERVED, "engine.server.port=8123"),
    (SERVED, "engine.endpoint.timeout_s=7"),
    (SERVED, "teacher.endpoint.address=http://elsewhere:8000"),
    (SERVED, "rollout.concurrency=64"),
    (SERVED, "evaluation.concurrency=64"),
]
OTHER = [
    ((), "seed=1"),
    ((), "schedule.floor=0.1"),
    ((), "rollout.top_p=0.9"),
    ((), "rounds.labels=20"),
    ((), "max_grad_norm=null"),
    ((), "rollout.concurrency=64"),  # the batch of an engine in this process
    ((), "evaluation.tasks=7"),
    (("env=pypi_bugs", "scaffold=bash", "sandbox=bubblewrap"), "scaffold.timeout_s=7"),  # what a command may take
    (SERVED, "teacher.model=other"),
]


@cache
def config_of(*overrides: str) -> DictConfig:
    return compose_checked("train", [*overrides])


def resolved(cfg: DictConfig) -> Any:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return settings_of(config)


@pytest.mark.parametrize(("base", "change"), SAME)
def test_what_does_not_change_the_outcome_is_in_no_hash_and_no_group(base: tuple[str, ...], change: str) -> None:
    before, after = config_of(*base), config_of(*base, change)
    assert before != after
    assert config_hash(before, "train") == config_hash(after, "train")
    assert resolved(before) == resolved(after)


@pytest.mark.parametrize(("base", "change"), OTHER)
def test_what_changes_the_outcome_is_in_both(base: tuple[str, ...], change: str) -> None:
    before, after = config_of(*base), config_of(*base, change)
    assert config_hash(before, "train") != config_hash(after, "train")
    assert resolved(before) != resolved(after)


def test_another_command_is_another_job_and_a_key_without_a_value_is_none() -> None:
    cfg = config_of()
    assert config_hash(cfg, "train") != config_hash(cfg, "evaluate")
    with open_dict(later := cfg.copy()):
        later.brought_by_a_later_version = None
    assert config_hash(later, "train") == config_hash(cfg, "train")
