"""Real bugs in real packages, as a world: which tasks there are in each split, and what is set aside."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from dagger_exp.envs.pypi_bugs.env import PypiBugsEnv
from dagger_exp.envs.pypi_bugs.making import Maker, Trials, load_trials, write_whole
from dagger_exp.envs.pypi_bugs.packages import LIST, Package, PackageCache, Project, UnusableError, listed
from dagger_exp.envs.pypi_bugs.suites import Suites
from dagger_exp.errors import ConfigError
from dagger_exp.protocols import Sandboxes, Scaffold
from dagger_exp.types import Task

logger = logging.getLogger(__name__)

MAKER_VERSION = 1
"""Part of the place in the cache: raise it when this folder makes other tasks from the same list and seed."""


class PypiBugs:
    """Small packages of the package index with one bug each, made on this machine; `packages.toml` lists them.

    A task is a package in a sandbox, one line of it wrong, with half of the tests that fail because of that. The
    packages are fetched and their bugs are made on first use (about a second of two cores for each task), and
    kept below `cache_folder`. The splits share no package.

    Args:
        cache_folder: of packages and tasks.
        packages: names of those to use; None for all.
        num_train_tasks: size of the training split.
        num_validation_tasks: size of the validation split; may be 0.
        num_heldout_tasks: size of the held-out split.
        min_usable_rate: share of these sizes that must be there in the end. A package that cannot be had, or whose
            suite fails without a bug, is set aside with its reason, and the others make more.
        seed: of the bugs.
        num_workers: bugs that are tried at the same time.
        max_turns: of an episode.
        scaffold: of the run.
        sandboxes: of the run.

    Raises:
        ConfigError: a value makes no sense, or there is no scaffold or no sandbox.
    """

    def __init__(
        self,
        *,
        cache_folder: str | Path,
        packages: Sequence[str] | None = None,
        num_train_tasks: int = 200,
        num_validation_tasks: int = 0,
        num_heldout_tasks: int = 100,
        min_usable_rate: float = 0.8,
        seed: int = 0,
        num_workers: int = 2,
        max_turns: int = 20,
        scaffold: Scaffold | None = None,
        sandboxes: Sandboxes | None = None,
    ) -> None:
        if scaffold is None or sandboxes is None:
            raise ConfigError("env=pypi_bugs runs commands: choose scaffold=bash and sandbox=bubblewrap.")
        if min(num_train_tasks, num_validation_tasks + 1, num_heldout_tasks, num_workers, max_turns) < 1:
            raise ConfigError("env=pypi_bugs needs a train task, a held-out task, a worker and a turn.")
        if not 0.0 < min_usable_rate <= 1.0:
            raise ConfigError("env.min_usable_rate is a share above 0 and at most 1.")
        self.max_turns = max_turns
        self._sizes = {
            "train": num_train_tasks,
            "validation": num_validation_tasks,
            "heldout": num_heldout_tasks,
        }
        self.packages = _chosen(packages, [split for split, size in self._sizes.items() if size])
        self.num_workers, self.min_usable_rate, self.seed = num_workers, min_usable_rate, seed
        self._scaffold, self._sandboxes = scaffold, sandboxes
        self._cache = PackageCache(Path(cache_folder).absolute())
        self.folder = self._cache.folder / f"tasks-{self._digest()}"
        self._made: dict[str, Sequence[Task]] = {}
        self._projects: dict[str, tuple[Project, Sequence[str]]] = {}

    def tasks(self, split: str) -> Sequence[Task]:
        """Return the tasks of a split, its packages in turns; makes them at first.

        Raises:
            ConfigError: there are too few, with what was set aside; or no sandbox can be started.
            SandboxError: a sandbox failed while bugs were tried.
        """
        if split not in self._sizes:
            raise ConfigError(f"env=pypi_bugs has no split {split}; choose train, validation or heldout.")
        if split not in self._made:
            self._made[split] = self._load(split) if self._sizes[split] else ()
        return self._made[split]

    def make(self, task: Task) -> PypiBugsEnv:
        """Return a fresh env. Raises `EnvError` where the package is gone and cannot be had again."""
        name = task.data["package"]
        if name not in self._projects:
            package = self.packages[name]
            self._projects[name] = self._cache.project(package), load_trials(self._path(package)).passing
        project, passing = self._projects[name]
        return PypiBugsEnv(task, project=project, passing=passing, suites=self._suites(), scaffold=self._scaffold)

    def vocabulary(self) -> Sequence[str]:
        """Return nothing: text is free."""
        return ()

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Hold the sandboxes."""
        return self._sandboxes.connected()

    def _load(self, split: str) -> Sequence[Task]:
        aside = self._aside(split)
        kept = {name: load_trials(self._path(package)) for name, package in self._of(split).items()}
        trials = {name: Trials(set_aside=aside[name]) if name in aside else found for name, found in kept.items()}
        if is_lacking := bool(_lacking(trials, self._sizes[split])):
            trials = self._make(split, aside)
        in_turns = itertools.zip_longest(*(found.tasks for found in trials.values()))
        rows = [row for turn in in_turns for row in turn if row is not None][: self._sizes[split]]
        if len(rows) < self.min_usable_rate * self._sizes[split]:
            raise ConfigError(
                f"env=pypi_bugs has {len(rows)} of {self._sizes[split]} {split} tasks, and env.min_usable_rate is "
                f"{self.min_usable_rate:g}: mend what is set aside and delete {self._index_path(split)}, or want fewer"
                f"{_set_aside(trials)}."
            )
        if is_lacking:
            self._write_index(split, trials)
        return tuple(Task(row["id"], split, row) for row in rows)

    def _aside(self, split: str) -> Mapping[str, str]:
        """Return why packages were set aside when the tasks were made: a later run plays the same, whatever it has."""
        chosen = self._of(split)
        index = self._index(split).items()
        return {name: found["set_aside"] for name, found in index if found["set_aside"] and name in chosen}

    def _index(self, split: str) -> dict[str, dict[str, Any]]:
        path = self._index_path(split)
        return json.loads(path.read_text()) if path.exists() else {}

    def _write_index(self, split: str, trials: Mapping[str, Trials]) -> None:
        index = self._index(split) | {
            name: {"tasks": len(found.tasks), "rejected": found.rejections(), "set_aside": found.set_aside}
            for name, found in trials.items()
        }
        write_whole(self._index_path(split), json.dumps(index, indent=1) + "\n")

    def _index_path(self, split: str) -> Path:
        return self.folder / f"{split}.json"

    def _make(self, split: str, aside: Mapping[str, str]) -> Mapping[str, Trials]:
        """Make the tasks that are missing."""
        self._sandboxes.check()
        try:
            self._cache.site()
        except UnusableError as error:
            raise ConfigError(f"env=pypi_bugs cannot run tests: {error}.") from error
        trials = asyncio.run(self._tried(split, aside))
        for name, found in trials.items():
            if found.set_aside:
                again = self._index_path(split)
                logger.warning("%s is set aside: %s; delete %s to try it again", name, found.set_aside, again)
        return trials

    async def _tried(self, split: str, aside: Mapping[str, str]) -> Mapping[str, Trials]:
        trials = {name: Trials(set_aside=reason) for name, reason in aside.items()}
        makers: dict[str, Maker] = {}
        for name, package in self._of(split).items():
            if name in aside:
                continue
            try:
                makers[name] = self._maker(package)
                trials[name] = makers[name].trials
            except UnusableError as error:
                trials[name] = Trials(set_aside=str(error))
        async with self._sandboxes.connected():
            while lacking := _lacking(trials, self._sizes[split]):
                for name, num_tasks in lacking.items():
                    logger.info("making %d tasks of %s", num_tasks, name)
                    await makers[name].ensure(num_tasks)
        return trials

    def _maker(self, package: Package) -> Maker:
        return Maker(
            self._cache.project(package),
            self._suites(),
            seed=self.seed,
            path=self._path(package),
            num_workers=self.num_workers,
        )

    def _suites(self) -> Suites:
        return Suites(self._sandboxes, self._cache.site())

    def _of(self, split: str) -> Mapping[str, Package]:
        return {name: package for name, package in self.packages.items() if package.split == split}

    def _path(self, package: Package) -> Path:
        return self.folder / f"{package.name}.jsonl"

    def _digest(self) -> str:
        """Return what decides the tasks; not their number, since more of them go on from fewer.

        A suite may pass with one Python only, and tells a failure in the words of its Python.
        """
        key = json.dumps([MAKER_VERSION, self.seed, LIST.read_text(), self._sandboxes.python])
        return hashlib.blake2b(key.encode(), digest_size=6).hexdigest()


def _chosen(names: Sequence[str] | None, splits: Sequence[str]) -> Mapping[str, Package]:
    packages = listed()
    for name in names or ():
        if name not in packages:
            raise ConfigError(f"env.packages: {name} is not in the list; choose among {', '.join(packages)}.")
    chosen = {name: package for name, package in packages.items() if names is None or name in names}
    for split in splits:
        if all(package.split != split for package in chosen.values()):
            of_split = [name for name, package in packages.items() if package.split == split]
            raise ConfigError(f"env.packages has none of the {split} split; add one of {', '.join(of_split)}.")
    return chosen


def _lacking(trials: Mapping[str, Trials], num_tasks: int) -> Mapping[str, int]:
    """Return the packages that must make more, and up to which number: as equal a share of all as they can.

    A package that can make no more leaves its share to the others.
    """
    ends = {name: len(found.tasks) if found.is_over else num_tasks for name, found in trials.items()}
    shares = range(math.ceil(num_tasks / len(trials)), num_tasks)
    share = next((share for share in shares if sum(min(share, end) for end in ends.values()) >= num_tasks), num_tasks)
    return {name: share for name, found in trials.items() if not found.is_over and len(found.tasks) < share}


def _set_aside(trials: Mapping[str, Trials]) -> str:
    reasons = [f"{name} ({found.set_aside})" for name, found in trials.items() if found.set_aside]
    return f"; set aside: {', '.join(reasons)}" if reasons else ""
