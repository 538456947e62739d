"""What a run leaves behind: a row per round, the failures, sample episodes; in files, and in every logger."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger

from dagger_exp.store.files import write_json
from dagger_exp.training.csv_logger import read_csv, write_csv
from dagger_exp.types import Episode, Turn

STEP_INTERVAL = 10
"""Optimizer steps between two logged ones."""
SAMPLE_EPISODES = 3
KINDS = ("step", "row", "samples")
FAILURE_COLUMNS = ("phase", "round", "episode", "task", "stop_reason", "error")


class RunRecord:
    """Rows of a run, in `summary.json` and in the loggers.

    Args:
        folder: of the run.
        loggers: each gets every row against the axis `round` and every tenth step against `trainer/global_step`.
    """

    def __init__(self, *, folder: Path, loggers: Sequence[Logger]) -> None:
        self.folder, self.loggers = folder, list(loggers)
        self.path = folder / "summary.json"
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.rows: list[dict[str, float]] = found.get("rounds", [])
        self._log_again()

    def row(self, round_index: int) -> dict[str, float] | None:
        """Return the row of a round that is over, None before."""
        return next((row for row in self.rows if row["round"] == round_index), None)

    def add(self, row: dict[str, float], step: int) -> None:
        """Log the row of a round that is over, then write it down: after a kill it is logged again, never lost.

        A row of the same round is replaced.

        Args:
            row: of the round.
            step: optimizer steps that were taken until then.
        """
        self._log(row, step, "row")
        self.rows = [other for other in self.rows if other["round"] != row["round"]] + [row]
        write_json(self.path, {**row, "best_round": best_round(self.rows), "rounds": self.rows})

    def _log_again(self) -> None:
        """Give W&B the rows again that a killed process may not have sent; those that the server has, it drops."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger) and not logger.experiment.offline:
                step = 0
                for row in self.rows:
                    step += int(row["round/num_steps"])
                    logger.experiment.log(dict(row), step=_history(step, "row"))

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log an optimizer step."""
        if step % STEP_INTERVAL == 0:
            self._log({**metrics, "trainer/global_step": step}, step, "step")

    def log_samples(self, round_index: int, episodes: Sequence[Episode], step: int) -> None:
        """Log the first episodes of a round as a table: who acted, what was done, and the label.

        Args:
            round_index: the round.
            episodes: of it, in order.
            step: optimizer steps that were taken before.
        """
        columns = ["round", "episode", "task", "turn", "actor", "observation", "action", "label", "beta", "coin"]
        rows = [
            [*(round_index, episode.episode_index, episode.task_id), *_cells(turn)]
            for episode in episodes[:SAMPLE_EPISODES]
            for turn in episode.turns
        ]
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                table = wandb_table(columns, rows)
                logger.experiment.log({"rollout/samples": table, "round": round_index}, step=_history(step, "samples"))

    def _log(self, metrics: Mapping[str, float], step: int, kind: str) -> None:
        for logger in self.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.log(dict(metrics), step=_history(step, kind))
            else:
                logger.log_metrics(dict(metrics))

    def failures(self, phase: str, round_index: int, failed: Sequence[Episode]) -> None:
        """Write the episodes of a phase that infrastructure ended to `failures.csv`; a second time changes nothing."""
        path = self.folder / "failures.csv"
        before = read_csv(path)
        others = [row for row in before if (row["phase"], row["round"]) != (phase, str(round_index))]
        rows = others + [
            dict(zip(FAILURE_COLUMNS, map(str, (phase, *_failure(episode))), strict=True)) for episode in failed
        ]
        if rows != before or not path.exists():
            write_csv(path, FAILURE_COLUMNS, rows)

    def close(self, folder: Path) -> None:
        """Upload the store and the student where W&B is online, and end every logger."""
        for logger in self.loggers:
            if isinstance(logger, WandbLogger) and not logger.experiment.offline:
                for name in ("rounds", "student"):
                    logger.experiment.log_artifact(str(folder / name), name=f"{folder.name}-{name}", type=name)
            logger.finalize("success")


def best_round(rows: Sequence[Mapping[str, float]]) -> int | None:
    """Return the first of the rounds with the highest success rate on the validation tasks, None without such tasks."""
    rated = [row for row in rows if "validation/success_rate" in row]
    return int(max(rated, key=lambda row: row["validation/success_rate"])["round"]) if rated else None


def _history(step: int, kind: str) -> int:
    """Return where in a W&B history something stands.

    W&B counts calls, and begins anew in a process that goes on, whose lines its server then drops as older than what
    it has. So the place follows from the training: a step, the row of the round it ends, the samples of the next one.
    """
    return len(KINDS) * step + KINDS.index(kind)


def wandb_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Return a W&B table."""
    import wandb

    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def _failure(episode: Episode) -> tuple[Any, ...]:
    where = (episode.round_index, episode.episode_index, episode.task_id)
    return (*where, episode.stop_reason.value, episode.error)


def _cells(turn: Turn) -> list[Any]:
    executed = (turn.turn_index, turn.actor.value, turn.observation, turn.response_text)
    return [*executed, turn.label_text or "", turn.beta, turn.coin]


def define_axes(experiment: Any) -> None:
    """Tell W&B which axis each metric is drawn against."""
    for prefix in ("round", "rollout", "eval", "validation"):
        experiment.define_metric(f"{prefix}/*", step_metric="round")
    experiment.define_metric("train/*", step_metric="trainer/global_step")
