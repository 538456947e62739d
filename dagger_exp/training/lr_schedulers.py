"""Learning-rate schedules over the whole run, not over a round."""

from __future__ import annotations

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_stable_decay(optimizer: Optimizer, *, num_steps: int, warmup_steps: int, decay_rate: float) -> LambdaLR:
    """Return a linear warm-up, a plateau, and a linear decay to 0.

    Args:
        optimizer: whose rate is scaled.
        num_steps: optimizer steps of the whole run.
        warmup_steps: steps of the warm-up.
        decay_rate: share of the run, at its end, over which the rate decays; 0 keeps it constant.
    """

    def factor(step: int) -> float:
        left = (num_steps - step) / max(1.0, decay_rate * num_steps)
        return min(1.0, (step + 1) / max(1, warmup_steps), max(0.0, left) if decay_rate else 1.0)

    return LambdaLR(optimizer, factor)
