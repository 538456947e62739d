"""How is an evaluation built? On tasks that the world has, and that nothing else is chosen by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from dagger_exp.errors import ConfigError
from dagger_exp.evaluation.evaluator import Evaluator
from dagger_exp.policies.mixture import StudentOnly
from dagger_exp.protocols import Sandboxes, World
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import SameTasks
from dagger_exp.store.store import Store
from dagger_exp.types import Task

if TYPE_CHECKING:
    from dagger_exp.config.build import Run


def at_once(concurrency: int, sandboxes: Sandboxes | None) -> int:
    """Return how many episodes play at once: none waits for a sandbox, since that would count as its own time."""
    return min(concurrency, sandboxes.max_live) if sandboxes else concurrency


def build_evaluator(cfg: DictConfig, run: Run, split: str = "heldout") -> Evaluator:
    """Build what plays the tasks of a split as episodes are collected, but by the student alone and without labels.

    Raises:
        ConfigError: the world has no such tasks.
    """
    runner, name = run.collector.runner, {"heldout": "eval"}.get(split, split)
    alone = replace(
        runner,
        student=replace(runner.student, temperature=cfg.evaluation.temperature, top_p=1.0),
        mixing=StudentOnly(),
        labeler=Labeler(turns="none"),
        budget=TeacherBudget(),
    )
    number = cfg.evaluation.tasks if split == "heldout" else cfg.evaluation.validation_tasks
    plan = SameTasks(tasks=tasks_of(run.world, split)[:number], seed=cfg.evaluation.seed)
    collector = Collector(
        runner=alone,
        store=Store(run.folder / name, run.collector.store.run_id),
        plan=plan,
        concurrency=at_once(cfg.evaluation.concurrency, run.sandboxes),
        keeps=lambda round_index, stop_reason: False,
    )
    return Evaluator(name=name, collector=collector)


def tasks_of(world: World, split: str) -> Sequence[Task]:
    """Return the tasks of a split to evaluate on; raises `ConfigError` where the world has none."""
    cure = "" if split == "heldout" else ": set evaluation.validation_tasks=0, or let its tasks(split) return some"
    try:
        tasks = world.tasks(split)
    except (LookupError, ValueError) as error:  # of a world that knows no such split
        raise ConfigError(f"the env has no {split} split ({type(error).__name__}: {error}){cure}.") from error
    if not len(tasks):
        raise ConfigError(f"the env's {split} split is empty{cure}.")
    return tasks


def check_disjoint(evaluators: Sequence[Evaluator]) -> None:
    """Refuse to choose by the tasks that are reported; raises `ConfigError`."""
    held, *others = ({task.id for task in evaluator.collector.plan.tasks} for evaluator in evaluators)
    if shared := held.intersection(*others) if others else set():
        raise ConfigError(f"the env's validation and heldout splits share {len(shared)} tasks, as {min(shared)}.")
