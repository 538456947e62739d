"""What a person sees: a live view of the phase, a line per round, and at the end where things lie."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from omegaconf import DictConfig
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dagger_exp.types import Actor, Episode

COLUMNS = {
    "round": 5,
    "beta": 5,
    "student": 7,
    "labels": 6,
    "agree": 5,
    "err": 5,
    "loss": 6,
    "success": 7,
    "95 %": 9,
    "s": 5,
}
"""Headings and widths: share of the student's turns, its agreement with the teacher, its malformed actions (alone)."""


class Terminal:
    """Shows a run on a terminal, or line by line where there is none.

    Args:
        cfg: of the run, for its head.
        num_parameters: of the student.
        folder: of the run.
    """

    def __init__(self, cfg: DictConfig, num_parameters: int, folder: Path) -> None:
        self.console = Console()
        self.folder = folder
        self.num_rounds = cfg.rounds.num_rounds
        self.rows: list[dict[str, float]] = []
        self.began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
        )
        self._task = TaskID(0)
        self._live = Live(self._bar, console=self.console, refresh_per_second=4, transient=True)
        self._actors: deque[Actor] = deque(maxlen=60)
        world = cfg.env._target_.rsplit(".", 1)[-1]
        size = f"{num_parameters / 1e6:.2f} M parameters"
        self.console.print(
            f"[bold]{cfg.name}[/] on {world}, student of {size}, seed {cfg.seed} -> {escape(str(folder))}"
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        shown = "" if beta is None else f" beta {beta:.2f}"
        text = f"round {round_index + 1}/{self.num_rounds} {phase:8}{shown}"
        self._task = self._bar.add_task(text, total=total, completed=done, figures="")
        self._phase_began, self._episodes, self._solved = time.monotonic(), 0, 0
        self._actors.clear()
        if not self.console.is_terminal:
            self.console.print(text)

    def advance(self, amount: int, *, episode: Episode | None = None, loss: float | None = None) -> None:
        figures = "" if loss is None else f"loss {loss:.3f}"
        if episode is not None:
            self._episodes += 1
            self._solved += episode.solved
            self._actors.extend(turn.actor for turn in episode.turns)
            speed = self._episodes / max(1e-6, time.monotonic() - self._phase_began)
            figures = f"{speed:.0f} episodes/s  solved {self._solved / self._episodes:.0%}  {self._who()}"
        self._bar.update(self._task, advance=amount, figures=figures + self._left())

    def end_round(self, row: dict[str, float]) -> None:
        if not self.rows:
            self.console.print(Text(_line(COLUMNS), style="bold"))
        self.rows.append(row)
        self.console.print(_line(_cells(row)), highlight=False)

    def warn(self, text: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(text)}")

    def finish(self) -> None:
        """Print where things lie and what to type next."""
        self._live.stop()
        folder = escape(_short(self.folder))
        self.console.print(f"\ndone in {time.monotonic() - self.began:.0f} s; in {folder}:", soft_wrap=True)
        table = Table.grid(padding=(0, 2))
        table.add_row("  student/", "a Hugging Face folder")
        table.add_row("  summary.json, metrics.csv", "a row per round")
        table.add_row("  rounds/*/episodes.parquet", "a row per turn: who acted, the action, the label")
        self.console.print(table)
        self.console.print("next:\n  dagger-train method=sft   [dim]# as many labels, the teacher acting alone[/]")
        self.console.print(f"  dagger-evaluate student.init={folder}", soft_wrap=True)

    def _who(self) -> str:
        """Return the last turns as a strip: T where the teacher acted, s where the student did."""
        return "".join("[cyan]T[/]" if actor is Actor.TEACHER else "[green]s[/]" for actor in list(self._actors)[-20:])

    def _left(self) -> str:
        """Return the time that is left, guessed from the rounds that are over."""
        if not self.rows:
            return ""
        per_round = sum(_seconds(row) for row in self.rows[1:] or self.rows) / len(self.rows[1:] or self.rows)
        return f"  ~{per_round * (self.num_rounds - len(self.rows)):.0f} s left"


def _short(folder: Path) -> str:
    """Return the folder as a person in the current one would type it."""
    return os.path.relpath(folder) if folder.is_relative_to(Path.cwd()) else str(folder)


def _line(cells: Iterable[str]) -> str:
    return "  ".join(f"{cell:>{width}}" for cell, width in zip(cells, COLUMNS.values(), strict=True))


def _cells(row: dict[str, float]) -> list[str]:
    def show(name: str, form: str) -> str:
        return format(row[name], form) if name in row else "-"

    interval = f"{show('eval/success_low', '.2f')}-{show('eval/success_high', '.2f')}"
    return [
        f"{row['round']:.0f}",
        show("round/beta", ".2f"),
        show("rollout/student_turn_rate", ".2f"),
        show("rollout/num_labels", ".0f"),
        show("rollout/agreement_rate", ".2f"),
        show("eval/malformed_rate", ".2f"),
        show("train/loss", ".3f"),
        show("eval/success_rate", ".3f"),
        interval,
        f"{_seconds(row):.1f}",
    ]


def _seconds(row: dict[str, float]) -> float:
    return sum(row.get(f"round/{phase}_s", 0.0) for phase in ("collect", "train", "evaluate"))
