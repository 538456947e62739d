"""`checkpoints/last.ckpt`: from where a run goes on, whole or not at all; and where it may be interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dagger_exp.errors import DataError
from dagger_exp.store.files import written_aside
from dagger_exp.training.model_folder import read_checkpoint
from dagger_exp.training.preemption import PREEMPTION, Preempted, Preemption


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning's own way leads through the system's temporary folder: onto another disk that is a copy, which a kill
    cuts in the middle, and what it leaves in the temporary folder stays there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with written_aside(Path(path)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **options: Any) -> dict[str, Any]:
        return read_checkpoint(path)


class LastCheckpoint(Checkpoint):
    """Keeps the newest checkpoint: of the end of every epoch that had a batch, of every few steps, of a preemption.

    Lightning calls it after all other callbacks, so a step that ends here is whole.

    Args:
        path: of the file.
        every_n_steps: optimizer steps between two checkpoints inside an epoch.
        preemption: signals, held back from the first step of an epoch to its end.
    """

    def __init__(self, path: Path, *, every_n_steps: int, preemption: Preemption = PREEMPTION) -> None:
        self.path, self.every_n_steps, self.preemption = path, every_n_steps, preemption

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.preemption.hold()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch:
            return  # the epoch is saved as a whole
        is_over = self._is_over(trainer)
        if is_over or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer, pl_module)
        if is_over:
            raise Preempted

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.num_training_batches:  # none: the run was over before this epoch
            self._save(trainer, pl_module)
        if self._is_over(trainer):
            raise Preempted
        self.preemption.release()

    def _save(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        """Save, but never over a sound checkpoint what no longer is one."""
        if not all(bool(torch.isfinite(p).all()) for p in module.parameters() if p.requires_grad):
            raise DataError(
                f"at step {trainer.global_step} the student has weights that are no numbers, which no checkpoint "
                "keeps: start a new run with a lower optimizer.lr."
            )
        trainer.save_checkpoint(self.path, weights_only=False)

    def _is_over(self, trainer: lightning.Trainer) -> bool:
        """Whether any process has heard a signal; it may reach one a step earlier, and saving takes them all."""
        return trainer.strategy.reduce_boolean_decision(self.preemption.heard is not None, all=False)
