"""The loss is a weighted sum of these pure functions; the weights are data, so no method has a name here."""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Return sum_i w_i * -log p(target_i), the imitation loss of DAgger (paper Eq. 12-13, with w = 1 on labels).

    Args:
        logits: (num_tokens, vocabulary), each row predicts one target.
        targets: (num_tokens,) token ids.
        weights: (num_tokens,); dividing by their sum over the global batch is the caller's part.
    """
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    return (losses * weights).sum()
