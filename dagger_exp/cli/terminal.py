"""What a person sees: a live view of the phase, a line per round, and at the end where things lie."""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from omegaconf import DictConfig
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dagger_exp.types import Actor, Episode

Row = Mapping[str, float]
STRIP = 40
"""Turns of the strip that shows who acted."""
OF_METHODS = ("method", "mixing", "schedule", "labeler")
"""What another method brings by itself."""


def _shown(name: str, form: str) -> Callable[[Row], str]:
    return lambda row: format(row[name], form) if name in row else "-"


def _interval(row: Row) -> str:
    return f"{row['eval/success_low']:.2f}-{row['eval/success_high']:.2f}" if "eval/success_low" in row else "-"


def _seconds(row: Row) -> float:
    return sum(row.get(f"round/{phase}_s", 0.0) for phase in ("collect", "train", "evaluate"))


COLLECTED: dict[str, tuple[int, Callable[[Row], str]]] = {
    "round": (5, _shown("round", ".0f")),
    "beta": (5, _shown("round/beta", ".2f")),
    "student": (7, _shown("rollout/student_turn_rate", ".2f")),
    "labels": (6, _shown("rollout/num_labels", ".0f")),
    "agree": (5, _shown("rollout/agreement_rate", ".2f")),
}
"""Headings, widths and cells: the share of the student's turns, and of those where the teacher agreed with it."""
SECONDS = {"s": (6, lambda row: f"{_seconds(row):.1f}")}
TABLES: dict[str, dict[str, tuple[int, Callable[[Row], str]]]] = {
    "train": COLLECTED
    | {"err": (5, _shown("eval/malformed_rate", ".2f")), "loss": (6, _shown("round/loss", ".3f"))}
    | {"success": (7, _shown("eval/success_rate", ".3f")), "95 %": (9, _interval)}
    | SECONDS,
    "collect": COLLECTED
    | {"episodes": (8, _shown("rollout/num_episodes", ".0f")), "solved": (6, _shown("rollout/success_rate", ".2f"))}
    | SECONDS,
    "evaluate": {},
}
"""`err` is the share of malformed actions of the student alone. Each table fits 80 columns."""


class Terminal:
    """Shows a run on a terminal, or line by line where there is none.

    Args:
        cfg: of the run, for its head.
        num_parameters: of the student.
        folder: of the run.
        command: train, collect or evaluate.
    """

    def __init__(self, cfg: DictConfig, num_parameters: int, folder: Path, command: str = "train") -> None:
        self.console = Console()
        self.folder, self.command, self.name = folder, command, cfg.name
        self.num_rounds = 1 if command == "evaluate" else cfg.rounds.num_rounds
        self.rows: list[Row] = []
        self.began = self._phase_began = time.monotonic()
        self._actors: deque[Actor] = deque(maxlen=STRIP)
        self._phase, self._figures, self._episodes, self._solved = "", "", 0, 0
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[left]}"))
        self._task = TaskID(0)
        self._live = Live(
            get_renderable=self._view, console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False
        )
        world = cfg.env._target_.rsplit(".", 1)[-1]
        size = f"{num_parameters / 1e6:.2f} M parameters"
        what = cfg.name if command == "train" else command
        self._say(f"[bold]{escape(what)}[/] on {world}, a student of {size}, seed {cfg.seed}")
        self._say(f"[dim]in {escape(_short(folder))}[/]")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        """Show a phase from now on."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        shown = "" if beta is None else f"  beta {beta:.2f}"
        place = "" if self.command == "evaluate" else f"round {round_index + 1}/{self._last_round(round_index)}  "
        text = f"{place}{phase:8}{shown}"
        self._task = self._bar.add_task(text, total=total, completed=done, left=self._left())
        self._phase_began, self._episodes, self._solved, self._figures = time.monotonic(), 0, 0, ""
        self._actors.clear()
        self._phase = phase
        if not self.console.is_terminal:
            self._say(text.rstrip())

    def advance(self, amount: int, *, episode: Episode | None = None, loss: float | None = None) -> None:
        """Show that some of the phase is done."""
        if loss is not None:
            self._figures = f"  loss {loss:.3f}"
        if episode is not None:
            self._episodes += 1
            self._solved += episode.solved
            self._actors.extend(turn.actor for turn in episode.turns if self._phase == "collect")
            speed = self._episodes / max(1e-6, time.monotonic() - self._phase_began)
            self._figures = f"  {speed:4.0f} episodes/s  solved {self._solved / self._episodes:4.0%}  "
        self._bar.update(self._task, advance=amount, left=self._left())

    def end_round(self, row: Row) -> None:
        """Print the line of a round."""
        table = TABLES[self.command]
        if not self.rows:
            self.console.print(Text("  ".join(f"{name:>{width}}" for name, (width, _) in table.items()), style="bold"))
        self.rows.append(row)
        line = "  ".join(f"{cell(row):>{width}}" for width, cell in table.values())
        self.console.print(line, highlight=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self.console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=not self.console.is_terminal)

    def finish(self, *, lies: Mapping[str, str] | None = None, also: Mapping[str, str] | None = None) -> None:
        """Print where things lie and what to type next.

        Args:
            lies: names in the run folder and what they hold; those of a training by default.
            also: commands and what they do; those after a training by default.
        """
        self._live.stop()
        folder = escape(_short(self.folder))
        self._say(f"\ndone in {time.monotonic() - self.began:.0f} s; in {folder}:")
        table = Table.grid(padding=(0, 2))
        for name, text in (self._lies() if lies is None else lies).items():
            table.add_row(f"  {name}", text)
        self.console.print(table)
        self._say("next:")
        for command, text in (self._next() if also is None else also).items():
            self._say(f"[dim]  # {escape(text)}[/]\n  {escape(command)}")

    def _lies(self) -> dict[str, str]:
        found = {
            "student/": "a Hugging Face folder",
            "summary.json, metrics.csv": "a row per round",
            "rounds/*/episodes.parquet": "a row per turn: who acted, the action, the label",
        }
        if any(self.folder.glob("student_rounds/*")):
            found["student_rounds/"] = "the students of rounds, each as in student/"
        offline = any(self.folder.glob("wandb/offline-run-*"))
        return found | ({"wandb/": "wandb sync FOLDER/wandb/offline-run-* uploads it"} if offline else {})

    def _next(self) -> dict[str, str]:
        other = ("dagger", "as many labels, the student acting too")
        if not self.name.startswith("sft"):
            other = ("sft", "as many labels, the teacher acting alone")
        train = ["dagger-train", *chosen(self.folder, but=OF_METHODS), f"method={other[0]}"]
        evaluate = ["dagger-evaluate", shlex.quote(f"student.init={_short(self.folder)}")]
        return {" ".join(train): other[1], " ".join(evaluate): "the student again"}

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)

    def _view(self) -> Group:
        """Return the live lines: where the run is, and what was seen last (T where the teacher acted)."""
        figures = Text(self._figures, no_wrap=True, overflow="ellipsis")
        for actor in self._actors.copy():  # at once: this is another thread than the one whose episodes end
            figures.append("T" if actor is Actor.TEACHER else "s", "cyan" if actor is Actor.TEACHER else "green")
        return Group(self._bar, figures) if self._bar.task_ids else Group()

    def _last_round(self, round_index: int) -> int:
        return max(self.num_rounds, round_index + 1)

    def _left(self) -> str:
        """Return the time that is left, guessed from the rounds that are over; the first is longer than the others."""
        if not self.rows or self.command == "evaluate":
            return ""
        known = [_seconds(row) for row in self.rows[1:] or self.rows]
        left = sum(known) / len(known) * (self.num_rounds - len(self.rows)) - (time.monotonic() - self._round_began())
        return f"~{left:.0f} s left" if left > 0 else ""

    def _round_began(self) -> float:
        return self.began + sum(_seconds(row) for row in self.rows)


def _short(folder: Path) -> str:
    """Return the folder as a person in the current one would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    return json.loads(path.read_text()) if path.exists() else {}


def chosen(folder: Path, but: Sequence[str]) -> list[str]:
    """Return what was typed to start a run, as in a shell, but for its place and for these groups and their keys."""
    manifest, left_out = _manifest(folder), {*but, "name", "sweep_name", "hydra"}
    own = ["--config-dir", _short(Path(str(manifest["config_dir"])))] if manifest.get("config_dir") else []
    typed = list(manifest.get("command", []))[1:]
    kept = [override for override in typed if re.split("[=.@]", override.lstrip("+~"))[0] not in left_out]
    return [shlex.quote(word) for word in [*own, *kept]]
