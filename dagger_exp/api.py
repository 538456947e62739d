"""Train, evaluate and read runs from Python, as in a notebook.

    from dagger_exp import evaluate, load_run, train

    run = train("rounds.num_rounds=2", method="sft", seed=1)
    run.table().to_pandas()                         # a row per round
    run.episodes(0)[0].turns                        # who acted, the action, the label
    evaluate(run.folder, "evaluation.tasks=50")     # the rates of its student

Each call runs the command of the same name in a process of its own, which prints as it does in a terminal: a notebook
keeps its memory, its logging and its signals, and an interrupted run can be resumed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dagger_exp.analysis import load
from dagger_exp.analysis.load import Row
from dagger_exp.errors import ConfigError, DaggerError
from dagger_exp.store.files import read_json
from dagger_exp.store.view import StoreView
from dagger_exp.types import Episode

if TYPE_CHECKING:
    from dagger_exp.training.student import Student

MISTAKE = 2
"""Exit code of a command that the user can correct."""


@dataclass(frozen=True)
class LoadedRun:
    """A run on disk; everything is read when it is asked for, also while the run goes on."""

    folder: Path

    @property
    def rows(self) -> Sequence[Row]:
        """The metrics of each finished round under their flat names, as `eval/success_rate`."""
        return load.load_run(self.folder).rows

    @property
    def config(self) -> Mapping[str, Any]:
        """Every key of the run's config with its value."""
        return load.load_run(self.folder).config

    def table(self) -> pa.Table:
        """Return the rows as a table, a metric that a round lacks as null; `to_pandas()` makes a data frame of it."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        return pa.table({name: [row.get(name) for row in self.rows] for name in names})

    def episodes(self, round_index: int, split: str = "train") -> list[Episode]:
        """Return the episodes of a closed round.

        Args:
            round_index: the round, from 0.
            split: `train` for what was collected; `heldout` or `validation` for the evaluation after the round.

        Raises:
            StoreError: the round is not closed, or the run has no such evaluation.
        """
        folders = {"train": "rounds", "heldout": "eval", "validation": "validation"}
        return StoreView(self.folder / folders[split]).read(round_index).all_episodes()

    def student(self) -> Student:
        """Load the student, with its `model` and its `tokenizer`."""
        from dagger_exp.training.student import from_folder

        max_context_tokens = self.config["student"]["max_context_tokens"]
        return from_folder(path=str(self.folder), max_context_tokens=max_context_tokens)


def load_run(folder: str | Path) -> LoadedRun:
    """Return the run in a folder.

    Raises:
        StoreError: there is none, or its files are damaged.
    """
    load.load_run(Path(folder))
    return LoadedRun(Path(folder))


def train(*overrides: str, folder: str | Path | None = None, **choices: Any) -> LoadedRun:
    """Train a student, and return its run.

    Args:
        overrides: of `dagger-train`, as `"rounds.num_rounds=2"`; `"resume=FOLDER"` alone goes on with a run.
        folder: where the run is written; None makes one below `outputs/runs`.
        choices: keys without a dot, as `method="sft", seed=1`.

    Raises:
        ConfigError: a choice is wrong; the message is what the command says.
        DaggerError: the run failed; `train.log` in its folder has the traceback.
    """
    resumed = [override.partition("=")[2] for override in overrides if override.startswith("resume=")]
    if resumed:
        _run("train", list(overrides))
        return load_run(resumed[0])
    folder = Path(folder or _new_folder("runs", choices.get("method", "dagger")))
    _run("train", [*overrides, *_typed(choices), f"hydra.run.dir={_quoted(folder)}"])
    return load_run(folder)


def evaluate(
    student: str | Path, *overrides: str, folder: str | Path | None = None, **choices: Any
) -> dict[str, float]:
    """Play the held-out tasks with a student, and return the metrics under `eval/`.

    Args:
        student: a run, a checkpoint of one, or a Hugging Face folder.
        overrides: of `dagger-evaluate`, as `"evaluation.tasks=50"`.
        folder: where the episodes are written; None makes one below `outputs/evaluations`.
        choices: keys without a dot.

    Raises:
        ConfigError: a choice is wrong; the message is what the command says.
        DaggerError: the evaluation failed.
    """
    folder = Path(folder or _new_folder("evaluations", Path(student).name))
    init = f"student.init={_quoted(Path(student))}"
    _run("evaluate", [init, *overrides, *_typed(choices), f"hydra.run.dir={_quoted(folder)}"])
    return read_json(folder / "evaluation.json", "evaluate again")


def _run(command: str, arguments: Sequence[str]) -> None:
    """Run a command, and print what it prints."""
    words = [sys.executable, "-m", f"dagger_exp.cli.{command}", *arguments]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:  # noqa: S603
        assert process.stdout is not None
        last = ""
        for line in process.stdout:
            print(line, end="")  # noqa: T201 - to the notebook, as the command does to a terminal
            last = line.strip() or last
    if process.returncode:
        raise (ConfigError if process.returncode == MISTAKE else DaggerError)(last.removeprefix("error: "))


def _typed(choices: Mapping[str, Any]) -> list[str]:
    return [f"{key}={'null' if value is None else value}" for key, value in choices.items()]


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"


def _new_folder(kind: str, name: str) -> Path:
    """Return a folder that does not exist yet, named as the commands name theirs."""
    return Path("outputs", kind, f"{datetime.now():%Y-%m-%d_%H-%M-%S.%f}_{name}")  # noqa: DTZ005 - local, for people
