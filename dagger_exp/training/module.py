"""The student as a LightningModule. It knows no method: who acted and who labelled is in the weights of the tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import lightning
import torch
from torch import Tensor

from dagger_exp.data.batches import Batch, MicroBatch
from dagger_exp.errors import ConfigError
from dagger_exp.training.losses import weighted_cross_entropy
from dagger_exp.training.student import Student

FROZEN = "frozen_hash"
"""Key of a checkpoint."""
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By the bytes of a weight: their sum is exact, in whatever order it is taken."""


class StudentModule(lightning.LightningModule):
    """Trains the student on batches of prefix trees.

    Optimisation is manual, for one reason: the loss is normalised over the global batch, whose weight is known before
    its micro-batches are, and whose micro-batches differ in number from step to step.

    Args:
        student: model and tokenizer.
        optimizer: makes the optimizer of parameters.
        lr_scheduler: makes the scheduler of an optimizer; it is stepped after every optimizer step.
        max_grad_norm: gradients are clipped to this norm; None leaves them.
    """

    def __init__(
        self,
        student: Student,
        *,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        lr_scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler],
        max_grad_norm: float | None = 1.0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.model = student.model.train()  # one from a folder comes with its dropout off
        self._make_optimizer, self._make_scheduler = optimizer, lr_scheduler
        self.max_grad_norm = max_grad_norm
        self.strict_loading = all(parameter.requires_grad for parameter in self.parameters())
        self._frozen = frozen_hash(self.model)

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer([p for p in self.parameters() if p.requires_grad])
        return {"optimizer": optimizer, "lr_scheduler": self._make_scheduler(optimizer)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen: it is where it came from, and is known again there."""
        checkpoint[FROZEN] = self._frozen
        for name, parameter in self.named_parameters(remove_duplicate=False):
            if not parameter.requires_grad:
                checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to go on with an adapter above other weights than it was trained with.

        Raises:
            ConfigError: those that are here now are others.
        """
        if checkpoint.get(FROZEN, self._frozen) != self._frozen:
            raise ConfigError(
                "the weights below this run's adapter are not those that it began with: put back what student.init or "
                "student.path names, or start a new run."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Take one optimizer step; return this process's share of the loss of the global batch."""
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        shares = [self._backward(micro_batch, batch.total_weight) for micro_batch in batch.micro_batches]
        self.clip_gradients(optimizer, gradient_clip_val=self._max_norm(), gradient_clip_algorithm="norm")
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        return torch.stack(shares).sum()

    def _backward(self, micro_batch: MicroBatch, total_weight: float) -> Tensor:
        loss = self.loss(micro_batch) / total_weight
        self.manual_backward(loss * self.trainer.world_size)  # the strategy averages gradients over processes
        return loss.detach()

    def _max_norm(self) -> float | None:
        """Return the limit in the gradients' own scale: with fp16 they are scaled until the optimizer steps."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if self.max_grad_norm is None or scaler is None:
            return self.max_grad_norm
        return self.max_grad_norm * scaler.get_scale()

    def loss(self, micro_batch: MicroBatch) -> Tensor:
        """Return the weighted sum of the losses of a micro-batch, not normalised."""
        positions, place = torch.unique(micro_batch.target_parents, return_inverse=True)
        logits = self.model(
            input_ids=micro_batch.input_ids,
            attention_mask=micro_batch.attention_mask(),
            position_ids=micro_batch.position_ids,
            use_cache=False,  # with a cache, restarted positions are silently wrong
            logits_to_keep=positions,
        ).logits
        predictions = logits[micro_batch.target_rows, place]
        return weighted_cross_entropy(predictions, micro_batch.target_ids, micro_batch.target_weights)


def frozen_hash(model: torch.nn.Module) -> str:
    """Return what tells the weights that are not trained from others, "" where all are trained."""
    frozen = [(name, weight.detach()) for name, weight in model.named_parameters() if not weight.requires_grad]
    sums = [(name, int(weight.view(INTEGERS[weight.element_size()]).sum())) for name, weight in frozen]
    return hashlib.sha256(repr(sums).encode()).hexdigest() if sums else ""
