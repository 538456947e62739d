"""Which bugs make tasks? Mutations are tried in sandboxes, in an order drawn by the seed, until there are enough.

A mutation makes a task where tests of at least two functions fail, since a part of these is hidden from the agent, at
least one passes, and none is missing. What came of every trial is kept in a file for each package, which is written
aside and renamed, so that a making that is interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dagger_exp.envs.pypi_bugs.hiding import function_of, hidden_functions
from dagger_exp.envs.pypi_bugs.mutations import Mutation, mutations, ordered
from dagger_exp.envs.pypi_bugs.packages import Project
from dagger_exp.envs.pypi_bugs.suites import Report, Suites
from dagger_exp.errors import ConfigError
from dagger_exp.types import Key

logger = logging.getLogger(__name__)

BASELINES = 3
"""Runs of a suite without a bug, in all of which the same tests must pass."""


@dataclass
class Trials:
    """What came of the mutations of a package: `passing`, the tests that judge, and the rest in order of trial."""

    passing: Sequence[str] = ()
    set_aside: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)
    is_exhausted: bool = False

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Return the data of the tasks found so far."""
        return [row["task"] for row in self.rows if "task" in row]

    @property
    def is_over(self) -> bool:
        """Whether the package makes no more tasks."""
        return self.is_exhausted or bool(self.set_aside)

    def rejections(self) -> Mapping[str, int]:
        """Return how many mutations made no task, by reason."""
        return Counter(row["rejected"] for row in self.rows if "rejected" in row)


class Maker:
    """Makes the tasks of one package.

    Args:
        project: the package.
        suites: where its tests run.
        seed: of the order of mutations, and of what is hidden.
        path: of the file with the trials.
        num_workers: trials at the same time.
    """

    def __init__(self, project: Project, suites: Suites, *, seed: int, path: Path, num_workers: int) -> None:
        self.project, self.suites, self.seed, self.path = project, suites, seed, path
        self.num_workers = num_workers
        self.trials = load_trials(path)

    async def ensure(self, num_tasks: int) -> Trials:
        """Return trials with as many tasks, fewer where there are no more mutations. Raises `SandboxError`."""
        if not self.trials.passing and not self.trials.set_aside:
            await self._measure()
        candidates = self._candidates() if len(self.trials.tasks) < num_tasks and not self.trials.is_over else []
        while len(self.trials.tasks) < num_tasks and not self.trials.is_over:
            done = len(self.trials.rows)
            batch = candidates[done : done + self.num_workers]
            self.trials.rows += await asyncio.gather(*(self._tried(*pair, done + i) for i, pair in enumerate(batch)))
            self.trials.is_exhausted = len(self.trials.rows) == len(candidates)
            self._save()
        return self.trials

    async def _measure(self) -> None:
        """Find out which tests pass without a bug."""
        runs = [await self.suites.run(self.project.files, f"{self._name}-baseline") for _ in range(BASELINES)]
        unlike = "" if len({report.passed for report in runs}) == 1 else "other tests pass each time that it runs"
        self.trials.set_aside = next(filter(None, map(_complaint, runs)), unlike)
        self.trials.passing = sorted(runs[0].passed)
        self._save()

    async def _tried(self, file: str, mutation: Mutation, index: int) -> dict[str, Any]:
        text = self.project.files[file].decode()
        if not mutation.matters(text):
            return {"rejected": "no other meaning"}
        content = {**self.project.files, file: mutation.applied(text).encode()}
        report = await self.suites.run(content, f"{self._name}-{index}")
        return self._judged(file, mutation, report, index)

    def _judged(self, file: str, mutation: Mutation, report: Report, index: int) -> dict[str, Any]:
        passing = set(self.trials.passing)
        failing = sorted(passing & report.failed.keys())
        functions = sorted({function_of(test) for test in failing})
        hidden = hidden_functions(functions, self.project, Key(self.seed, 0, f"{self._name}-{index}", 0))
        reasons = {
            "the suite cannot end": bool(report.complaint),
            "tests are missing": not passing <= report.passed | report.failed.keys(),
            "no test fails": not failing,
            "no test passes": not passing & report.passed,
            "tests of one function alone fail": not hidden,
        }
        for reason, holds in reasons.items():
            if holds:
                return {"rejected": reason}
        task = {
            "id": f"{self._name}-{index:04d}",
            "package": self._name,
            "version": self.project.package.version,
            "file": file,
            **asdict(mutation),
            "visible": {test: report.failed[test] for test in failing if function_of(test) not in hidden},
            "hidden": {test: report.failed[test] for test in failing if function_of(test) in hidden},
        }
        return {"task": task}

    def _candidates(self) -> list[tuple[str, Mutation]]:
        texts = {path: self.project.files[path].decode() for path in self.project.modules}
        return ordered([(path, mutation) for path, text in texts.items() for mutation in mutations(text)], self.seed)

    @property
    def _name(self) -> str:
        return self.project.package.name

    def _save(self) -> None:
        head = {name: value for name, value in vars(self.trials).items() if name != "rows"}
        write_whole(self.path, "".join(json.dumps(row) + "\n" for row in [head, *self.trials.rows]))


def load_trials(path: Path) -> Trials:
    """Return what a file holds; nothing where there is none yet."""
    if not path.exists():
        return Trials()
    head, *rows = map(json.loads, path.read_text().splitlines())
    return Trials(**head, rows=rows)


def write_whole(path: Path, text: str) -> None:
    """Write a file aside and rename it, so that nobody reads half of it; raises `ConfigError` where it cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
            aside = Path(folder, path.name)
            aside.write_text(text)
            aside.replace(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}): free space, or set another paths.cache_folder."
        ) from error


def _complaint(report: Report) -> str:
    if report.complaint:
        return report.complaint
    failed = [f"{test}: {message}" for test, message in report.failed.items()]
    if failed:
        return f"{len(failed)} tests fail without a bug, as {failed[0]}"
    return "" if report.passed else "it has no test that passes"
