"""Who logs a run beside its own folder? W&B, which is begun before the first round, so that it can still refuse."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from dagger_exp.errors import ConfigError
from dagger_exp.training.record import define_axes

FINISH_TIMEOUT_S = "300"
"""How long a run waits at its end for a W&B server that is away, where the environment says nothing else."""
FINISH_MARGIN_S = 20.0
"""How much longer it waits before it ends W&B: some uploads are tried again and again, whatever that limit is.

W&B writes its log of a run to the disk every 15 s, so that all of it is there by then.
"""


def begin_wandb(
    make: Callable[..., Logger],
    *,
    folder: Path,
    run_id: str,
    group: str | None,
    offline: bool,
    config: Mapping[str, Any],
) -> Logger:
    """Return a logger whose W&B run has begun.

    Args:
        make: the logger, of what it is given here.
        folder: of the run.
        run_id: of the run, in W&B too.
        group: of W&B.
        offline: whether the run is written to the folder alone.
        config: plain values, for W&B to show.

    Raises:
        ConfigError: W&B cannot be reached or does not let us in.
    """
    import wandb

    os.environ.setdefault("WANDB_FINISH_TIMEOUT", FINISH_TIMEOUT_S)
    mode = "offline" if offline else "online"
    settings = wandb.Settings(silent=True, console="off", mode=mode, finish_timeout_raises=True)
    wandb.setup(settings)  # those of a run come too late for what is said before it begins
    logger = make(
        id=run_id,
        name=folder.name,
        group=group,
        job_type="train",
        save_dir=str(folder),
        resume="allow",  # all of these again after a restart: an offline run knows nothing of the one before
        config=config,
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


def finish_wandb(exit_code: int) -> Path | None:
    """End the W&B run of this process, and be done with it soon after W&B's own limit, whatever the server does.

    Returns:
        The folder of what did not arrive, which can be uploaded later; None where all did.
    """
    import wandb

    assert wandb.run is not None
    settings, has_arrived = wandb.run.settings, Event()
    # A thread that nobody waits for: of a service that another process has started, it may never end.
    ending = Thread(target=_finish, args=(wandb.run, exit_code, has_arrived), daemon=True)
    ending.start()
    ending.join(settings.finish_timeout + FINISH_MARGIN_S if settings.finish_timeout else None)
    if ending.is_alive():
        _end_service(ending)
    return None if has_arrived.is_set() else Path(settings.sync_dir)


def _finish(run: Any, exit_code: int, has_arrived: Event) -> None:
    try:
        run.finish(exit_code=exit_code)
        has_arrived.set()
    except Exception:  # the run is over and saved, and says where the rest lies
        logging.getLogger(__name__).exception("W&B did not get all of the run")


def _end_service(ending: Thread) -> None:
    """Kill the process that uploads: W&B would wait for it again at the exit, and give it the next run of a sweep."""
    import wandb

    service: Any = wandb.setup().assert_service()
    if service.owns_service:
        service._proc._process.kill()  # noqa: SLF001 - W&B has no way to end it without waiting
        ending.join()  # it forgets the run
        with suppress(Exception, SystemExit):  # how W&B says that its process has ended
            wandb.teardown()
