"""What all commands share: the run folder, its manifest and status, and how a mistake is said."""

from __future__ import annotations

import atexit
import errno
import logging
import os
import shlex
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dagger_exp.cli.arguments import begun, is_sweep, only_shows, parsed, resumed, show
from dagger_exp.cli.complaints import complain, warn
from dagger_exp.cli.jobs import CANCELLED, is_first_process, refuse_second, set_state, sign
from dagger_exp.cli.manifest import began_as
from dagger_exp.cli.requeue import is_cancelled, requeue
from dagger_exp.cli.sweeping import sweep
from dagger_exp.errors import ConfigError, DaggerError, UserError
from dagger_exp.loading import without_collection
from dagger_exp.training.preemption import PREEMPTION

FIRST_FILES = {".hydra", "manifest.json", "status.json", "train.log", "rounds", "store.json", "writer.lock", "wandb"}
FIRST_FILES |= {"metrics.csv", "student", "eval", "validation"}
"""What a run folder holds before anything has happened in it."""
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""A full disk, a file that may not grow, a quota that is used up."""
Job = Callable[[DictConfig, Path], None]


class JobError(DaggerError):
    """A job of a sweep failed, and has said why."""


def run_command(command: str, job: Job) -> None:
    """Run a command of which `conf/<command>.yaml` is the config: show something, launch a sweep, or run the job."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises then what it would print
    find_own_parts()
    doc = str(sys.modules[job.__module__].__doc__)
    help_texts = {"doc": doc.strip(), "command": f"dagger-{command}"}  # for conf/hydra/default.yaml
    OmegaConf.register_new_resolver("dagger", help_texts.__getitem__, replace=True)
    arguments = sys.argv[1:]
    with answered():
        resume = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
        if resume and len(arguments) > 1:
            raise ConfigError("resume=FOLDER takes every choice from that run; remove the other arguments.")
        if is_first_process() and not any(argument.startswith("-") for argument in {*arguments} - {"-m", "--multirun"}):
            print(f"dagger-{command}: loading", flush=True)  # at once, since the libraries take seconds
        options = parsed(arguments)
        if only_shows(options):
            show(options, command)
        elif is_sweep(options):
            sweep(options, command, partial(in_sweep, job))  # by name, since submitit copies what it has no name for
        else:
            with without_collection():
                cfg, folder = resumed(resume[0], command) if resume else begun(options, command)
            with in_folder(folder):
                job(cfg, folder)


def find_own_parts() -> None:
    """Let a config name modules of the current folder, as `_target_: guessing.GuessingGame`; processes inherit it."""
    here, inherited = os.getcwd(), os.environ.get("PYTHONPATH", "").split(os.pathsep)  # noqa: PTH109 - as text
    if here not in sys.path:
        sys.path.append(here)  # last, so that nothing there hides a library
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, [*inherited, here])))


@contextmanager
def answered() -> Iterator[None]:
    """Answer a mistake in one sentence, and end with its exit code."""
    try:
        yield
    except JobError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as error:  # of a sweep; of a run, while it was loading
        print(f"\ninterrupted{error}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (DaggerError, OSError) as error:
        sys.exit(complain(error))


def in_sweep(job: Job, cfg: DictConfig) -> None:
    """Run a job of a sweep in the folder that Hydra's launcher has made.

    Raises:
        JobError: the job failed; the others go on.
    """
    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        refuse_second(folder)
        with in_folder(folder, in_sweep=True):
            job(cfg, folder)
    except (ConfigError, SystemExit) as error:
        code = complain(error) if isinstance(error, ConfigError) else error.code
        if code not in (1, 2):
            raise
        _exit_as_failed()
        raise JobError(f"a job failed: see {folder}/train.log.") from error


@contextmanager
def in_folder(folder: Path, *, in_sweep: bool = False) -> Iterator[None]:
    """Run a job in its folder: its log and its status are written there, and its W&B run has an end."""
    PREEMPTION.listen()
    try:
        with told(folder, in_sweep=in_sweep):
            log_to(folder / "train.log")
            yield
    except SystemExit:
        _finish_wandb(1)
        raise
    _finish_wandb(0)


@contextmanager
def told(folder: Path, *, in_sweep: bool = False) -> Iterator[None]:
    """Write `status.json`, and turn what goes wrong into a sentence and an exit code.

    A new folder in which nothing has happened before a mistake of the user is removed, but in a sweep.
    """
    is_new = {path.name for path in folder.iterdir()} <= {".hydra"}
    try:
        _status(folder, "running")
        yield
        _status(folder, "finished")
    except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001 - our own mistakes too are told, and shown whole
        sys.exit(ended(folder, error, is_new=is_new, in_sweep=in_sweep))


def ended(folder: Path, error: BaseException, *, is_new: bool, in_sweep: bool) -> int:
    """Say what has ended a run, and return the exit code."""
    if PREEMPTION.heard is not None:  # whatever came of it: some imports make an error of what interrupts them
        return stopped(folder, PREEMPTION.heard, again(folder, in_sweep=in_sweep))
    if isinstance(error, KeyboardInterrupt):
        _failed(folder, "interrupted")
        command = again(folder, in_sweep=in_sweep)
        print(f"\ninterrupted; nothing that was committed is lost. Go on with:\n  {command}", file=sys.stderr)
        return 130
    cause = error if isinstance(error, DaggerError | OSError) else full_disk(error)
    _failed(folder, "failed", f"{type(error).__name__}: {error}" if cause is None else str(cause))
    if cause is None:
        traceback.print_exception(error)
        return 1
    code = complain(cause)
    if is_new and not in_sweep and is_first_process() and isinstance(error, UserError):
        discard(folder)
    return code


def again(folder: Path, *, in_sweep: bool) -> str:
    """Return the command that goes on with a run, or with the sweep that it is a job of."""
    if in_sweep:
        return f"dagger-sweep resume {shlex.quote(str(folder.parent))}"
    return f"{began_as(folder)} {shlex.quote(f'resume={folder}')}"


def stopped(folder: Path, heard: signal.Signals, command: str) -> int:
    """Say that a signal has ended the run, have it started again where that is ours to do, and return the exit code."""
    if not is_first_process():
        return 0  # the first one says what happened, and has the job started again
    is_over = (folder / CANCELLED).exists() or is_cancelled(heard)
    logging.getLogger(__name__).warning("%s", heard.name)
    _failed(folder, "cancelled" if is_over else "preempted")
    if not is_over and requeue(heard):
        print(f"\n{heard.name}: saved; SLURM starts this job again, and it goes on.", file=sys.stderr)
    else:
        print(f"\n{heard.name}: saved. Go on with:\n  {command}", file=sys.stderr)
    return 128 + heard


def full_disk(error: BaseException | None) -> OSError | None:
    """Return the full disk behind an exception of a library that did not expect it."""
    while error is not None and not (isinstance(error, OSError) and error.errno in FULL):
        error = error.__cause__ or error.__context__
    return error


def discard(folder: Path) -> None:
    """Remove a run folder in which nothing has happened yet; any other file keeps it."""
    stores = (folder / name for name in ("rounds", "eval", "validation"))
    if {
        path.name for path in (*folder.iterdir(), *(path for store in stores for path in store.rglob("*")))
    } <= FIRST_FILES:
        _finish_wandb(1)  # or it goes on writing
        logging.basicConfig(handlers=[logging.NullHandler()], force=True)  # what W&B's threads still say goes nowhere
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.parent.rmdir()  # `runs/`, where this was the only run


def log_to(path: Path) -> None:
    """Send all logging to a file; the terminal shows the progress only."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a full disk is said once, not for every line
    sys.unraisablehook = _log_unraisable  # as of an event loop that Ctrl-C met half made


def _log_unraisable(ignored: sys.UnraisableHookArgs) -> None:
    error = ignored.exc_value or ignored.exc_type()
    logging.getLogger(__name__).warning("ignored in %r", ignored.object, exc_info=error)


def _failed(folder: Path, state: str, error: str = "") -> None:
    """Record how the run ended, where the disk lets us."""
    logging.getLogger(__name__).error("the run is %s", state, exc_info=bool(error))
    with suppress(DaggerError, OSError):
        _status(folder, state, error)


def _status(folder: Path, state: str, error: str = "") -> None:
    if is_first_process():
        last_line = error.strip().splitlines()[-1] if error.strip() else ""
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        set_state(folder, state, last_line, time=time, **sign())


def _exit_as_failed() -> None:
    """Let a process of submitit end with a code: to it a job that failed in order is a result like any other."""

    def leave() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)

    if "SUBMITIT_EXECUTOR" in os.environ:
        atexit.register(leave)


def _finish_wandb(exit_code: int) -> None:
    """End the W&B run of this job, so that the next job of a sweep begins its own."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        from dagger_exp.training.loggers import finish_wandb

        if PREEMPTION.heard is not None:
            wandb.mark_preempting()
        if (left := finish_wandb(exit_code)) is not None:
            upload = f"wandb sync --no-skip-online {shlex.quote(str(left))}"
            warn([f"W&B did not get all of this run: its files stay here, and its metrics are sent with: {upload}"])
