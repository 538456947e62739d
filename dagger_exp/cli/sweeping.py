"""Many runs: a sweep is expanded, checked and shown before anything is launched, and launched as often as one likes.

A job's folder follows from its config, so a sweep that is launched again skips what is finished, goes on with what
broke off, and adds what is new.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.callbacks import Callbacks
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dagger_exp.cli.expansion import Job, Sweep, expanded, overrides_of
from dagger_exp.cli.jobs import ALIVE, CANCELLED, WIDTH, JobState, counted, job_states, read_sweep
from dagger_exp.config.checks import per_round
from dagger_exp.config.mistakes import CONF_FOLDER, said_in_one_sentence
from dagger_exp.errors import ConfigError, StoreError
from dagger_exp.store.files import write_json

SHOWN = 40
"""Jobs that are listed one by one; of more, those that remain are counted."""
POLL_S = 5.0


def sweep(options: argparse.Namespace, command: str, task: Callable[[DictConfig], None]) -> None:
    """Show a sweep and launch what is not finished; `dry_run=true` stops before that.

    Raises:
        ConfigError: a job is not legal, or there is nothing to launch it with.
        SystemExit: a job failed.
    """
    typed = overrides_of(options)
    is_dry = "dry_run=true" in options.overrides
    with initialize_config_dir(CONF_FOLDER, version_base="1.3", job_name=f"dagger-{command}"):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        with said_in_one_sentence(command, typed):
            found = expanded(hydra, typed, command)
        states = job_states(found.folder, [job.name for job in found.jobs])
        show(found, states)
        if is_dry:
            return
        wanted = idle(found.jobs, states)
        with undone_if_refused(found.folder):
            record(found, command, typed)
            if wanted:
                launch(hydra, found, wanted, task)
    summarize(found.folder, [job.name for job in found.jobs])


def show(found: Sweep, states: Sequence[JobState]) -> None:
    """Print the jobs, what differs, what is there already, and what the others are expected to cost."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    table = Table(box=None, pad_edge=False, header_style="bold")
    keys = list(found.jobs[0].differs)
    for heading in ("job", *keys, "state", "rounds", "success"):
        table.add_column(heading, overflow="fold")
    for number, (one, state) in enumerate(zip(found.jobs[:SHOWN], states, strict=False)):
        success = "" if state.success_rate is None else f"{state.success_rate:.3f}"
        table.add_row(
            str(number), *(escape(one.differs[key]) for key in keys), state.state, str(state.num_rounds or ""), success
        )
    console.print(f"sweep [bold]{found.name}[/] in {found.folder}", highlight=False, soft_wrap=True)
    console.print(table, highlight=False)
    if len(found.jobs) > SHOWN:
        console.print(f"... and {len(found.jobs) - SHOWN} more")
    console.print(f"{counted(states)}. {cost(found, states)}", highlight=False, soft_wrap=True)


def cost(found: Sweep, states: Sequence[JobState]) -> str:
    """Return what the jobs that are not finished will take, in labels and steps, and in time where one is finished."""
    left = [one.cfg for one, state in zip(found.jobs, states, strict=True) if state.state != "finished"]
    sums = {name: sum(sum(per_round(cfg, name) or [0]) for cfg in left) for name in ("labels", "steps")}
    told = f"To come: {sums['labels']:,} labels, {sums['steps']:,} steps"
    seconds = [state.seconds for state in states if state.state == "finished"]
    if seconds and left:
        told += f", about {len(left) * sum(seconds) / len(seconds) / 60:.0f} minutes of one job after the other"
    return f"{told}."


def record(found: Sweep, command: str, typed: Sequence[str]) -> None:
    """Write `sweep.json`; jobs of earlier launches stay in it."""
    path = found.folder / "sweep.json"
    earlier: dict[str, Any] = {"launches": [], "jobs": {}}
    if path.exists():
        with suppress(StoreError):  # damaged: written anew
            earlier = read_sweep(found.folder)
    jobs = {one.name: {"overrides": one.overrides, "differs": dict(one.differs)} for one in found.jobs}
    launches = [*(launch for launch in earlier["launches"] if launch != list(typed)), list(typed)]
    content = {"name": found.name, "command": command, "launches": launches, "jobs": {**earlier["jobs"], **jobs}}
    write_json(path, content)


@contextmanager
def undone_if_refused(folder: Path) -> Iterator[None]:
    """Leave nothing behind in the folder of a sweep of which nothing was started, neither its file nor new folders."""
    path = folder / "sweep.json"
    is_new, made = not path.exists(), [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        yield
    except ConfigError:
        with suppress(OSError):
            if is_new and list(folder.iterdir()) == [path]:
                path.unlink()
            for place in made:
                place.rmdir()
        raise


def idle(jobs: Sequence[Job], states: Sequence[JobState]) -> list[Job]:
    """Return the jobs that nobody has finished, runs or has queued."""
    return [job for job, state in zip(jobs, states, strict=True) if state.state not in ("finished", *ALIVE)]


def launch(hydra: Hydra, found: Sweep, wanted: Sequence[Job], task: Callable[[DictConfig], None]) -> None:
    """Hand the jobs to Hydra's launcher, and wait for them.

    Raises:
        ConfigError: the launcher cannot start them.
    """
    for one in wanted:
        (found.folder / one.name / CANCELLED).unlink(missing_ok=True)
    # One after the other is one at a time: what another launch of this sweep has begun meanwhile is left to it.
    is_basic = launcher_of(found.master) == "BasicLauncher"
    size = 1 if is_basic else found.master.hydra.sweeper.max_batch_size or len(wanted)
    try:
        for first in range(0, len(wanted), size):
            batch = [one for one in wanted[first : first + size] if not (found.folder / one.name / CANCELLED).exists()]
            if batch := idle(batch, job_states(found.folder, [one.name for one in batch])):
                _launch(hydra, found, batch, first, task)
    except KeyboardInterrupt as error:
        again = f"dagger-sweep resume {found.folder}"
        raise KeyboardInterrupt(f"; what was started goes on, the rest with:\n  {again}") from error


def _launch(hydra: Hydra, found: Sweep, wanted: Sequence[Job], first: int, task: Callable[[DictConfig], None]) -> None:
    place = found.folder / ".submitit" / f"{datetime.now().astimezone():%Y%m%d-%H%M%S-%f}"
    master, is_submitted = found.master.copy(), "submitit_folder" in found.master.hydra.launcher
    if is_submitted:
        write_json(place / "jobs.json", {"launcher": launcher_of(master), "jobs": [one.name for one in wanted]})
        master.hydra.launcher.submitit_folder = f"{place}/%j"
    master.hydra.sweep.dir = str(found.folder)
    context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks(master))
    launcher: Any = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
    overrides = [[*one.overrides, f"hydra.sweep.subdir={one.name}"] for one in wanted]
    try:
        launcher.launch(overrides, initial_job_idx=first)
    except Exception as error:
        if not is_submitted or not any(path.is_dir() for path in place.iterdir()):
            shutil.rmtree(place, ignore_errors=True)  # nothing was started from there
            with suppress(OSError):
                place.parent.rmdir()
            raise _unlaunchable(error) from error
        wait(found.folder, [one.name for one in wanted])  # one that was killed left no result, the others go on


def launcher_of(master: DictConfig) -> str:
    """Return `BasicLauncher`, `LocalLauncher` or `SlurmLauncher`."""
    return str(master.hydra.launcher._target_).rpartition(".")[2]


def _unlaunchable(error: Exception) -> Exception:
    """Return what kept a launcher from starting anything as a sentence, where it is known."""
    text = " ".join(str(error).split())
    if 'not detect "srun"' in text:
        return ConfigError(
            "launcher=slurm finds no SLURM commands on this machine; run it on a login node, or "
            "choose launcher=local_parallel."
        )
    if type(error).__module__.startswith("submitit"):
        _, _, said = text.partition("stderr: ")
        return ConfigError(
            f"SLURM refuses the sweep: {(said or text).strip()}; see the keys in conf/launcher/slurm.yaml."
        )
    return error


def wait(folder: Path, names: Sequence[str]) -> None:
    """Wait until no job is pending or running any more."""
    while any(state.state in ALIVE for state in job_states(folder, names)):
        time.sleep(POLL_S)


def summarize(folder: Path, names: Sequence[str]) -> None:
    """Print how a sweep ended and what to type next.

    Raises:
        SystemExit: a job is not finished.
    """
    states = job_states(folder, names)
    unfinished = [state for state in states if state.state != "finished"]
    print(f"\n{len(states) - len(unfinished)} of {len(states)} jobs are finished; next:")
    for command in ("sweep status", "compare", "report"):
        print(f"  dagger-{command} {folder}")
    for state in unfinished:
        print(f"{state.state}: {state.name}: {state.error or f'see {folder / state.name}/train.log'}", file=sys.stderr)
    if unfinished:
        print(f"error: launch the sweep again, or: dagger-sweep resume {folder}", file=sys.stderr)
        sys.exit(1)
