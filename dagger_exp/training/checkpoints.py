"""`checkpoints/last.ckpt`: from where a run goes on, whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint

from dagger_exp.store.files import written_aside


class WholeCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it.

    Lightning's own way leads through the system's temporary folder: onto another disk that is a copy, which a kill
    cuts in the middle, and what it leaves in the temporary folder stays there.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        with written_aside(Path(path)) as file:
            torch.save(checkpoint, file)


class LastCheckpoint(Checkpoint):
    """Keeps the newest checkpoint: of the end of every epoch that had a batch, and of every few steps.

    Args:
        path: of the file.
        every_n_steps: optimizer steps between two checkpoints inside an epoch.
    """

    def __init__(self, path: Path, *, every_n_steps: int) -> None:
        self.path, self.every_n_steps = path, every_n_steps

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0 and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path, weights_only=False)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.num_training_batches:  # none: the run was over before this epoch
            trainer.save_checkpoint(self.path, weights_only=False)
