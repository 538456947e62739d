"""Who logs a run beside its own folder? W&B, which is begun before the first round, so that it can still refuse."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from dagger_exp.errors import ConfigError
from dagger_exp.training.record import define_axes

FINISH_TIMEOUT_S = "300"
"""How long a run waits at its end for a W&B server that is away, where the environment says nothing else."""


def begin_wandb(
    make: Callable[..., Logger],
    *,
    folder: Path,
    run_id: str,
    group: str | None,
    offline: bool,
    config: Any,
    overrides: Sequence[str],
) -> Logger:
    """Return a logger whose W&B run has begun.

    Args:
        make: the logger, of what it is given here.
        folder: of the run.
        run_id: of the run, in W&B too.
        group: of W&B.
        offline: whether the run is written to the folder alone.
        config: mapping of plain values, for W&B to show.
        overrides: what was typed, to be shown beside it.

    Raises:
        ConfigError: W&B cannot be reached or does not let us in.
    """
    import wandb

    os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)
    settings = wandb.Settings(silent=True, console="off", mode="offline" if offline else "online")
    wandb.setup(settings)  # those of a run come too late for what is said before it begins
    typed = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    logger = make(
        id=run_id,
        name=folder.name,
        group=group,
        job_type="train",
        save_dir=str(folder),
        resume="allow",  # all of these again after a restart: an offline run knows nothing of the one before
        config={**config, "overrides": typed},
        settings=settings,
    )
    if isinstance(logger, WandbLogger):
        define_axes(_begun(logger))
    return logger


def _begun(logger: WandbLogger) -> Any:
    """Begin the W&B run of a logger, and return it."""
    import wandb

    try:
        return logger.experiment
    except wandb.Error as error:
        said = str(error).strip().splitlines()[0].rstrip(".")
        raise ConfigError(
            f"logger=wandb cannot begin a run on W&B ({said}): log in with `wandb login`, or give logger=wandb_offline."
        ) from error
