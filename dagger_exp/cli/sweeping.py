"""Many runs: a sweep is expanded, checked and shown before anything is launched, and launched as often as one likes.

A job's folder follows from its config, so a sweep that is launched again skips what is finished, goes on with what
broke off, and adds what is new.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig

from dagger_exp.cli.arguments import is_dry, overrides_of
from dagger_exp.cli.jobs import ALIVE, CANCELLED, JobState, counted, job_states, print_jobs, read_sweep
from dagger_exp.cli.manifest import config_hash
from dagger_exp.config.checks import check, per_round
from dagger_exp.config.composing import composed, initialized, slug, without_hydra
from dagger_exp.config.mistakes import said_in_one_sentence
from dagger_exp.errors import ConfigError, StoreError
from dagger_exp.store.files import write_json

MAX_SLUG = 60
SHOWN = 40
"""Jobs that are listed one by one; of more, those that remain are counted."""
POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Job:
    """A run of a sweep: its folder's name, the overrides that make it, those that differ, and its config."""

    name: str
    overrides: list[str]
    differs: Mapping[str, str]
    cfg: DictConfig


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was typed, expanded: the folder and its name, the jobs, and Hydra's config of the launcher."""

    name: str
    folder: Path
    jobs: list[Job]
    master: DictConfig


def sweep(options: argparse.Namespace, command: str, task: Callable[[DictConfig], None]) -> None:
    """Show a sweep and launch what is not finished; `dry_run=true` stops before that.

    Raises:
        ConfigError: a job is not legal, or there is nothing to launch it with.
        SystemExit: a job failed.
    """
    typed = overrides_of(options)
    with initialized():
        with said_in_one_sentence(command, typed):
            found = expanded(typed, command)
        names = [job.name for job in found.jobs]
        states = job_states(found.folder, names)
        show(found, states)
        if is_dry(options):
            return
        with undone_if_refused(found.folder):
            record(found, command, typed)
            launch(found, idle(found.jobs, states), task)
    summarize(found.folder, names)


def expanded(typed: Sequence[str], command: str) -> Sweep:
    """Return the jobs of a sweep.

    Raises:
        ConfigError: a job is not legal, or two are the same.
    """
    fixed, swept = split(typed)
    chosen = composed(command, [*fixed, *_first(swept)])  # keys of an option are known beside it only
    given = [f"{key}={value}" for key, value in (chosen.hydra.sweeper.params or {}).items()]
    typed_keys = {override.partition("=")[0] for override in typed}
    more_fixed, more_swept = split([one for one in given if one.partition("=")[0] not in typed_keys])
    swept = more_swept | swept
    name = chosen.sweep_name or slug("-".join(swept)) or "single"
    fixed = [o for o in (*fixed, *more_fixed) if not o.startswith("sweep_name=")] + [f"sweep_name={name}"]
    master = composed(command, [*fixed, *_first(swept), "hydra.mode=MULTIRUN"])
    folder = Path(str(master.hydra.sweep.dir)).resolve()
    jobs = [
        checked_job(fixed, dict(zip(swept, values, strict=True)), command, folder)
        for values in itertools.product(*swept.values())
    ]
    names = [job.name for job in jobs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{len(twice)} jobs are in the sweep twice, as {twice.pop()}; remove one of the values.")
    return Sweep(name, folder, jobs, master)


def _first(swept: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"{key}={values[0]}" for key, values in swept.items()]


def split(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides with one value, and the values of those with several.

    Raises:
        ConfigError: a range without steps.
    """
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    for override in parser.parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_discrete_sweep():
            swept[override.get_key_element()] = list(override.sweep_string_iterator())
        else:
            raise ConfigError(f"{override.input_line} has no steps; list values, as in {override.key_or_group}=0,0.5,1")
    return fixed, swept


def checked_job(fixed: Sequence[str], choice: Mapping[str, str], command: str, folder: Path) -> Job:
    """Return a job of the sweep, checked; one that is there under another slug keeps its folder."""
    overrides = [*fixed, *(f"{key}={value}" for key, value in choice.items())]
    cfg = without_hydra(composed(command, overrides))
    check(cfg, command)
    if not any(override.startswith("name=") for override in overrides):
        overrides.append(f"name={cfg.name}")
    readable = slug("-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in choice.items()))[:MAX_SLUG]
    digits = config_hash(cfg, command)
    there = next((path.name for path in folder.glob(f"*_{digits}")), None)
    return Job(there or f"{readable.strip('-.') or 'job'}_{digits}", overrides, choice, cfg)


def show(found: Sweep, states: Sequence[JobState]) -> None:
    """Print the jobs, what differs, what is there already, and what the others are expected to cost."""
    print(f"sweep {found.name} in {found.folder}")
    differs = {key: [job.differs[key] for job in found.jobs[:SHOWN]] for key in found.jobs[0].differs}
    print_jobs(states[:SHOWN], {"job": list(map(str, range(len(states))))[:SHOWN], **differs})
    if len(states) > SHOWN:
        print(f"... and {len(states) - SHOWN} more")
    print(f"{counted(states)}. {cost(found, states)}")


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


def launch(found: Sweep, wanted: Sequence[Job], task: Callable[[DictConfig], None]) -> None:
    """Hand the jobs to Hydra's launcher, and wait for them.

    Raises:
        ConfigError: the launcher cannot start them.
    """
    for job in wanted:
        (found.folder / job.name / CANCELLED).unlink(missing_ok=True)
    # One after the other is one at a time: what another launch of this sweep has begun meanwhile is left to it.
    is_basic = launcher_of(found.master) == "BasicLauncher"
    size = 1 if is_basic else found.master.hydra.sweeper.max_batch_size or max(1, len(wanted))
    try:
        for first in range(0, len(wanted), size):
            batch = [job for job in wanted[first : first + size] if not (found.folder / job.name / CANCELLED).exists()]
            if batch := idle(batch, job_states(found.folder, [job.name for job in batch])):
                _launch(found, batch, first, task)
    except KeyboardInterrupt as error:
        again = f"dagger-sweep resume {found.folder}"
        raise KeyboardInterrupt(f"; what was started goes on, the rest with:\n  {again}") from error


def _launch(found: Sweep, wanted: Sequence[Job], first: int, task: Callable[[DictConfig], None]) -> None:
    place = found.folder / ".submitit" / f"{datetime.now().astimezone():%Y%m%d-%H%M%S-%f}"
    names, master = [job.name for job in wanted], found.master.copy()
    is_submitted = "submitit_folder" in master.hydra.launcher
    if is_submitted:
        write_json(place / "jobs.json", {"launcher": launcher_of(master), "jobs": names})
        master.hydra.launcher.submitit_folder = f"{place}/%j"
    master.hydra.sweep.dir = str(found.folder)
    callbacks: Any = Callback()  # none, by the only public class that has their methods
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
    launcher: Any = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=master)
    try:
        launcher.launch([[*job.overrides, f"hydra.sweep.subdir={job.name}"] for job in wanted], initial_job_idx=first)
    except Exception as error:
        if not is_submitted or not any(path.is_dir() for path in place.iterdir()):
            shutil.rmtree(place, ignore_errors=True)  # nothing was started from there
            with suppress(OSError):
                place.parent.rmdir()
            raise _unlaunchable(error) from error
        while any(state.state in ALIVE for state in job_states(found.folder, names)):
            time.sleep(POLL_S)  # one that was killed left no result, the others go on


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
