"""How is a run built? Each part once, by hand and in order; shared objects are passed as keywords."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import transformers
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from dagger_exp.chat.check import check_student
from dagger_exp.chat.conversation import Chat
from dagger_exp.config.checks import per_round
from dagger_exp.config.components import make, make_optional
from dagger_exp.config.evaluators import at_once, build_evaluator, check_disjoint
from dagger_exp.data.datamodule import RoundDataModule
from dagger_exp.data.selection import EpisodeFilter
from dagger_exp.errors import ConfigError
from dagger_exp.policies.llm import LanguagePolicy
from dagger_exp.protocols import Engine, Mixing, Sandboxes, Scaffold, World
from dagger_exp.rollout.budget import TeacherBudget
from dagger_exp.rollout.collector import Collector
from dagger_exp.rollout.demonstrations.importing import Demonstrations
from dagger_exp.rollout.labeler import Labeler
from dagger_exp.rollout.plan import ShuffledTasks
from dagger_exp.rollout.runner import Runner
from dagger_exp.rollout.watchdog import Watchdog
from dagger_exp.store.store import Store
from dagger_exp.training.checkpoints import LastCheckpoint, WholeCheckpointIO
from dagger_exp.training.csv_logger import CsvLogger
from dagger_exp.training.kept_students import KeptStudents
from dagger_exp.training.loggers import begin_wandb
from dagger_exp.training.module import StudentModule
from dagger_exp.training.progress import Progress
from dagger_exp.training.record import RunRecord
from dagger_exp.training.rounds import RoundCallback
from dagger_exp.training.student import Student
from dagger_exp.training.teacher import check_vocabularies
from dagger_exp.training.tree_check import check_trees

CHECKPOINT = Path("checkpoints", "last.ckpt")
"""Below the run folder."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """The parts of a run that its commands use."""

    folder: Path
    student: Student
    world: World
    engine: Engine
    mixing: Mixing
    sandboxes: Sandboxes | None
    collector: Collector

    def close(self) -> None:
        """Free what the engine holds, as a server that was started for it, and the store for other writers."""
        self.engine.close()
        self.collector.store.release()


def build_run(cfg: DictConfig, folder: Path, run_id: str, store_folder: Path | None = None) -> Run:
    """Build everything that plays episodes."""
    silence_libraries()
    torch.set_num_threads(cfg.num_threads)
    scaffold: Scaffold | None = make_optional(cfg.scaffold)
    sandboxes: Sandboxes | None = make_optional(cfg.sandbox, run_id=run_id)
    if sandboxes:
        sandboxes.check()  # before anything is fetched, made or played
    world: World = make(cfg.env, scaffold=scaffold, sandboxes=sandboxes)
    student: Student = make(cfg.student, vocabulary=world.vocabulary(), seed=cfg.seed)
    student = replace(student, tools=scaffold.tools if scaffold else ())
    chat = student.chat  # made once: a vocabulary of 150,000 takes it two seconds
    check_student(chat, scaffold, thoughts=bool(cfg.teacher.get("keep_reasoning")))
    engine: Engine = make(
        cfg.engine,
        end_id=chat.end_id,
        pad_id=student.tokenizer.pad_token_id,
        student=student,
        folder=folder / "engine",
    )
    mixing: Mixing = make(cfg.mixing, schedule=make_optional(cfg.schedule))
    runner = build_runner(cfg, world, scaffold, student, chat, engine, mixing)
    if runner.labeler.logprobs:
        check_vocabularies(student, runner.teacher)
    collector = Collector(
        runner=runner,
        store=Store(store_folder or folder / "rounds", run_id),
        plan=ShuffledTasks(tasks=world.tasks("train"), seed=cfg.seed, episodes_per_task=cfg.rollout.episodes_per_task),
        concurrency=at_once(cfg.rollout.concurrency, sandboxes),
        keeps=EpisodeFilter(**cfg.filter),
        round_timeout_s=cfg.rollout.round_timeout_s,
        demonstrations=make_optional(cfg.demonstrations, scaffold=scaffold),
    )
    return Run(
        folder=folder,
        student=student,
        world=world,
        engine=engine,
        mixing=mixing,
        sandboxes=sandboxes,
        collector=collector,
    )


def build_runner(
    cfg: DictConfig,
    world: World,
    scaffold: Scaffold | None,
    student: Student,
    chat: Chat,
    engine: Engine,
    mixing: Mixing,
) -> Runner:
    """Build what plays an episode of the training."""
    policy = LanguagePolicy(
        engine=engine,
        chat=chat,
        max_new_tokens=cfg.rollout.max_new_tokens,
        temperature=cfg.rollout.temperature,
        top_p=cfg.rollout.top_p,
    )
    return Runner(
        world=world,
        student=policy,
        teacher=make(cfg.teacher, scaffold=scaffold),
        mixing=mixing,
        labeler=Labeler(**cfg.labeler),
        chat=chat,
        max_context_tokens=student.max_context_tokens,
        max_observation_chars=cfg.rollout.max_observation_chars,
        turn_timeout_s=cfg.rollout.turn_timeout_s,
        episode_timeout_s=cfg.rollout.episode_timeout_s,
        max_attempts=cfg.rollout.max_attempts,
        budget=TeacherBudget(**cfg.teacher_budget),
        watchdog=Watchdog(patience_s=cfg.rollout.watchdog_s),
    )


def build_training(
    cfg: DictConfig, run: Run, run_id: str, progress: Progress, manifest: Mapping[str, Any] | None = None
) -> tuple[lightning.Trainer, StudentModule, RoundDataModule, RoundCallback]:
    """Build what trains: trainer, module, data and the callback that makes sure of the rounds.

    Args:
        cfg: of the run.
        run: what plays episodes.
        run_id: of the run, in W&B too.
        progress: who watches.
        manifest: of the run, for W&B to show beside the config; its sweep is the group if the config names none.
    """
    check_trees(run.student)
    module = StudentModule(
        run.student,
        optimizer=make(cfg.optimizer),
        lr_scheduler=make(cfg.lr_scheduler, num_steps=num_steps(cfg, run.collector.demonstrations)),
        max_grad_norm=cfg.max_grad_norm,
    )
    splits = ["heldout", *(["validation"] if cfg.evaluation.validation_tasks else [])]
    evaluators = [build_evaluator(cfg, run, split) for split in splits]
    check_disjoint(evaluators)
    loggers = build_loggers(cfg, run.folder, run_id, manifest or {})
    checkpoint = LastCheckpoint(run.folder / CHECKPOINT, every_n_steps=cfg.callbacks.checkpoint_steps)
    rounds = RoundCallback(
        collector=run.collector,
        evaluators=evaluators,
        mixing=run.mixing,
        engines=[run.engine],
        record=RunRecord(folder=run.folder, loggers=loggers),
        kept=KeptStudents(student=run.student, folder=run.folder / "student_rounds", which=cfg.keep_students),
        progress=progress,
        num_rounds=cfg.rounds.num_rounds,
        num_labels=per_round(cfg, "labels"),
        num_episodes=cfg.rounds.tasks and cfg.rounds.tasks * cfg.rollout.episodes_per_task,
        stop_at_success=cfg.evaluation.stop_at_success,
    )
    return build_trainer(cfg, run.folder, [rounds, checkpoint], loggers), module, build_data(cfg, run), rounds


def build_data(cfg: DictConfig, run: Run) -> RoundDataModule:
    """Build what makes batches of the rounds in the store."""
    return RoundDataModule(
        store=run.collector.store,
        seed=cfg.seed,
        keeps=EpisodeFilter(**cfg.filter),
        batch_size=cfg.rounds.batch_size,
        max_tree_tokens=cfg.rounds.max_tree_tokens,
        max_tokens=cfg.rounds.max_tokens,
        pad_id=run.student.tokenizer.pad_token_id,
        aggregation=cfg.aggregation,
        window=cfg.window,
        steps=per_round(cfg, "steps"),
        epochs_per_round=cfg.rounds.epochs_per_round,
        normalize=cfg.loss.normalize,
    )


def build_trainer(
    cfg: DictConfig, folder: Path, callbacks: list[lightning.Callback], loggers: list[Logger]
) -> lightning.Trainer:
    """Build Lightning's trainer; it requeues nothing, since the command line does."""
    _check_accelerator(cfg.trainer.accelerator)
    return make(
        cfg.trainer,
        default_root_dir=folder,
        max_epochs=cfg.rounds.num_rounds * cfg.rounds.epochs_per_round,
        reload_dataloaders_every_n_epochs=1,
        callbacks=callbacks,
        plugins=[WholeCheckpointIO(), *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [])],
        logger=loggers,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # of `self.log`, which is not used: the round callback logs each row with its axis
    )


def place_student(run: Run, accelerator: str) -> None:
    """Move a student that plays in this process to where a trainer would have it.

    Raises:
        ConfigError: there is no such accelerator.
    """
    _check_accelerator(accelerator)
    device = None if accelerator == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    if device is not None and run.engine.is_lock_step:
        run.student.model.to(device)


def _check_accelerator(accelerator: str) -> None:
    if accelerator == "gpu" and not torch.accelerator.is_available():
        raise ConfigError("trainer.accelerator is gpu, and PyTorch finds none; choose trainer=cpu.")


def silence_libraries() -> None:
    """Keep other people's progress bars and banners off the terminal; their messages go to `train.log`."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    transformers.utils.logging.disable_progress_bar()


def build_loggers(cfg: DictConfig, folder: Path, run_id: str, manifest: Mapping[str, Any]) -> list[Logger]:
    """Return `metrics.csv`, and W&B where it is chosen."""
    table = CsvLogger(folder / "metrics.csv")
    if not cfg.logger.get("_target_"):
        return [table]
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    typed = dict(word.lstrip("+").split("=", 1) for word in manifest.get("command", ()) if "=" in word)
    about = {key: manifest.get(key) for key in ("commit", "choices")}  # analysis/wandb_source.py reads it
    wandb = begin_wandb(
        partial(make, cfg.logger),
        folder=folder,
        run_id=run_id,
        group=cfg.logger.group or manifest.get("sweep"),
        offline=cfg.logger.get("offline", False),
        config=config | {"overrides": typed, "manifest": about},
    )
    return [table, wandb]


def num_steps(cfg: DictConfig, demonstrations: Demonstrations | None = None) -> int:
    """Return the optimizer steps of the whole run, so that the learning rate knows its length at the start.

    With whole passes over a union this is an upper bound: filters can only take episodes away.
    """
    steps = per_round(cfg, "steps")
    if steps is not None:
        return sum(steps)
    sizes = [cfg.rounds.tasks * cfg.rollout.episodes_per_task] * cfg.rounds.num_rounds
    if demonstrations is not None:
        sizes[0] = len(demonstrations.read().demonstrations)
    spans = {"union": cfg.rounds.num_rounds, "latest": 1, "window": cfg.window}
    per_pass = [
        math.ceil(sum(sizes[max(0, index + 1 - spans[cfg.aggregation]) : index + 1]) / cfg.rounds.batch_size)
        for index in range(cfg.rounds.num_rounds)
    ]
    return sum(per_pass) * cfg.rounds.epochs_per_round
