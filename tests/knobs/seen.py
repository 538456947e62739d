"""What does a run do? A tiny one is trained in this process, and what it did is written down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch

from dagger_exp.config.build import build_run, build_training
from dagger_exp.config.checks import check
from dagger_exp.config.composing import compose_checked
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.training.progress import Silent
from dagger_exp.types import Episode

TINY = (
    "debug=default",
    "engine=scripted",
    "student.hidden_size=16",
    "student.num_heads=2",
    "student.num_layers=1",
    "student.intermediate_size=16",
    "rounds.num_rounds=2",
    "rounds.labels=24",
    "rounds.steps=2",
    "rollout.concurrency=4",
    "evaluation.tasks=2",
    "evaluation.concurrency=2",
)
"""Two rounds in half a second of CPU."""


@dataclass
class Step:
    """An optimizer step: the (round, episode) pairs of its batch, and what became of it."""

    epoch: int
    episodes: list[tuple[int, int]]
    num_micro_batches: int
    longest_row: int
    num_targets: int
    weights: list[float]
    lr: float
    grad_norm: float
    loss: float
    draw: float


@dataclass
class Seen(Silent, lightning.Callback):
    """A run, as it was seen."""

    folder: Path
    phase: str = ""
    samplings: list[tuple[str, Sampling]] = field(default_factory=list)
    loads: list[tuple[str, int]] = field(default_factory=list)
    phases: list[tuple[str, int]] = field(default_factory=list)
    rounds: list[list[Episode]] = field(default_factory=list)
    evaluations: list[list[Episode]] = field(default_factory=list)
    validations: list[list[Episode]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    most_at_once: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    run: Any = None
    trainer: Any = None
    module: Any = None
    datamodule: Any = None
    grad_norm: float = 0.0
    num_threads: int = 0
    num_checkpoints: int = 0

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        self.phase = phase
        self.phases.append((phase, total))

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: Any) -> None:
        self.num_checkpoints += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad.norm() for p in pl_module.parameters() if p.grad is not None]
        self.grad_norm = float(torch.stack(gradients).norm())

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        loader = trainer.train_dataloader
        kept = loader.reader.episodes(loader.episode_indices(batch_idx))
        self.steps.append(
            Step(
                epoch=trainer.current_epoch,
                episodes=[(one.round_index, one.episode_index) for one in kept],
                num_micro_batches=len(batch.micro_batches),
                longest_row=max(one.input_ids.shape[1] for one in batch.micro_batches),
                num_targets=sum(len(one.target_ids) for one in batch.micro_batches),
                weights=[round(float(w), 6) for one in batch.micro_batches for w in one.target_weights],
                lr=float(trainer.optimizers[0].param_groups[0]["lr"]),
                grad_norm=self.grad_norm,
                loss=float(outputs["loss"]),
                draw=float(torch.rand(())),
            )
        )


def seen(folder: Path, *overrides: str, tiny: tuple[str, ...] = TINY) -> Seen:
    """Train a tiny run, and return what it did."""
    cfg = compose_checked("train", [*tiny, *overrides])
    check(cfg)
    told = Seen(folder)
    told.run = run = build_run(cfg, folder, "run")
    told.num_threads = torch.get_num_threads()
    watch(told, run)
    told.trainer, told.module, told.datamodule, rounds = build_training(cfg, run, "run", told)
    told.trainer.callbacks.insert(0, told)
    told.trainer.fit(told.module, datamodule=told.datamodule)
    rounds.finish(told.trainer, told.module)
    store = run.collector.store
    told.rounds = [store.read(index).episodes(range(store.manifest(index)["num_episodes"])) for index in store.rounds()]
    told.evaluations, *validations = [
        [evaluator.evaluate(index) for index in store.rounds()] for evaluator in rounds.evaluators
    ]
    told.validations = validations[0] if validations else []
    run.close()
    return told


def watch(told: Seen, run: Any) -> None:
    """Write down what the engine is asked and given, and how many ask at once."""
    engine, playing = run.engine, 0
    generate, load = engine.generate, engine.load_weights

    async def generated(prompt_ids: Any, sampling: Sampling) -> Generation:
        nonlocal playing
        told.samplings.append((told.phase, sampling))
        playing += 1
        told.most_at_once[told.phase] = max(told.most_at_once.get(told.phase, 0), playing)
        await asyncio.sleep(0)
        playing -= 1
        return await generate(prompt_ids, sampling)

    def loaded(version: int, weights: Any) -> None:
        told.loads.append((told.phase, version))
        load(version, weights)

    engine.generate, engine.load_weights = generated, loaded
