"""A run that is stopped anywhere and resumed is the run that was never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from transformers import AutoModelForCausalLM

from dagger_exp.config.build import CHECKPOINT, build_run, build_training
from dagger_exp.config.composing import compose_checked
from dagger_exp.engines.scripted import ScriptedEngine
from dagger_exp.errors import DataError, EngineError
from dagger_exp.protocols import Generation, Sampling
from dagger_exp.training.csv_logger import CsvLogger, read_csv
from dagger_exp.training.kept_students import KeptStudents
from dagger_exp.training.progress import Silent
from dagger_exp.training.record import best_round
from dagger_exp.types import Episode

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"
SMALL = (
    "debug=default",
    "engine=scripted",
    "student.hidden_size=32",
    "student.num_layers=1",
    "rounds.num_rounds=3",
    "rounds.labels=40",
    "rounds.steps=5",
    "evaluation.tasks=3",
    "callbacks.checkpoint_steps=2",
)
PASSES = ("rounds.steps=null", "rounds.labels=null", "rounds.tasks=5", "rounds.epochs_per_round=2")
NUM_EVENTS = 43
"""Of a `SMALL` run before its last evaluation: phases that begin, episodes that end, steps that are taken."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:Total length of:UserWarning",  # Lightning on the empty loader that ends a run early
)


class Stop(Exception):  # noqa: N818 - it stands for a kill, not for an error
    """Where a run is killed."""


class StopAt(Silent):
    """Stops the run at its n-th event."""

    def __init__(self, last: int | None) -> None:
        self.num_events, self.last = 0, last

    def begin(self, phase: str, round_index: int, total: int, done: int = 0, beta: float | None = None) -> None:
        self._count()

    def advance(self, amount: int, *, episode: Episode | None = None, loss: float | None = None) -> None:
        self._count()

    def _count(self) -> None:
        self.num_events += 1
        if self.num_events == self.last:
            raise Stop


class Gone(ScriptedEngine):
    """An engine that never answers."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        raise EngineError("gone")


@dataclass
class Steps(lightning.Callback):
    """Writes down what was trained: epoch, the episodes of the batch and the loss, by step."""

    seen: dict[int, tuple[Any, ...]] = field(default_factory=dict)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loader: Any = trainer.train_dataloader
        seen = (trainer.current_epoch, batch_idx, loader.episode_indices(batch_idx), float(outputs["loss"]))
        assert trainer.global_step not in self.seen, "a step was taken twice"
        self.seen[trainer.global_step] = seen


def play(folder: Path, *overrides: str, stop_at: int | None = None) -> Steps:
    """Start a run or resume it; return what was trained, up to the stop."""
    cfg = compose_checked("train", [*SMALL, *overrides])
    run, steps = build_run(cfg, folder, "run"), Steps()
    trainer, module, datamodule, rounds = build_training(cfg, run, "run", StopAt(stop_at))
    trainer.callbacks.append(steps)  # pyright: ignore[reportAttributeAccessIssue]
    path = folder / CHECKPOINT
    try:
        trainer.fit(module, datamodule=datamodule, ckpt_path=path if path.exists() else None, weights_only=False)
        rounds.finish(trainer, module)
    except Stop:
        assert stop_at is not None
    return steps


def rows(folder: Path) -> list[dict[str, float]]:
    """Return the rows of all rounds without seconds."""
    found = json.loads((folder / "summary.json").read_text())["rounds"]
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in found]


def metrics(folder: Path) -> list[dict[str, str]]:
    """Return metrics.csv without seconds."""
    found = read_csv(folder / "metrics.csv")
    return [{name: value for name, value in row.items() if not name.endswith("_s")} for row in found]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Steps]]:
    """Give the undisturbed run of these overrides."""
    played: dict[tuple[str, ...], tuple[Path, Steps]] = {}

    def get(*overrides: str) -> tuple[Path, Steps]:
        if overrides not in played:
            folder = tmp_path_factory.mktemp("whole")
            played[overrides] = (folder, play(folder, *overrides))
        return played[overrides]

    return get


def check_equal(whole: tuple[Path, Steps], folder: Path, before: Steps, after: Steps) -> None:
    """Hold a run that was resumed against the undisturbed one."""
    resumed_at = min(after.seen, default=len(whole[1].seen) + 1)
    trained = {step: batch for step, batch in before.seen.items() if step < resumed_at} | after.seen
    assert trained == whole[1].seen
    assert rows(folder) == rows(whole[0])
    assert metrics(folder) == metrics(whole[0])


@pytest.mark.parametrize("stop_at", range(2, NUM_EVENTS - 5, 6))  # the last events are an evaluation
def test_a_resume_trains_every_batch_once(tmp_path: Path, whole, stop_at: int) -> None:
    before = play(tmp_path, stop_at=stop_at)
    assert len(before.seen) < 15
    after = play(tmp_path)
    assert len(after.seen) < 15 or not before.seen or max(before.seen) <= 2, "went on from the last checkpoint"
    check_equal(whole(), tmp_path, before, after)


@pytest.mark.parametrize("stop_at", [12, 17])
def test_so_does_a_resume_of_whole_passes(tmp_path: Path, whole, stop_at: int) -> None:
    before = play(tmp_path, *PASSES, stop_at=stop_at)
    check_equal(whole(*PASSES), tmp_path, before, play(tmp_path, *PASSES))


def test_a_run_stopped_in_its_last_evaluation_evaluates_and_trains_no_more(tmp_path: Path, whole) -> None:
    before = play(tmp_path, stop_at=events(tmp_path / "counted"))
    assert len(before.seen) == 15
    assert len(rows(tmp_path)) == 2
    check_equal(whole(), tmp_path, before, after := play(tmp_path))
    assert not after.seen


def events(folder: Path) -> int:
    """Return how many events a whole run has."""
    cfg, progress = compose_checked("train", [*SMALL]), StopAt(None)
    trainer, module, datamodule, rounds = build_training(cfg, build_run(cfg, folder, "run"), "run", progress)
    trainer.fit(module, datamodule=datamodule)
    rounds.finish(trainer, module)
    return progress.num_events


def test_an_outage_in_an_evaluation_ends_the_run_until_a_resume(tmp_path: Path, whole) -> None:
    cfg = compose_checked("train", [*SMALL])
    trainer, module, datamodule, rounds = build_training(cfg, build_run(cfg, tmp_path, "run"), "run", StopAt(None))
    collector = rounds.evaluators[0].collector
    alone = replace(collector.runner, student=replace(collector.runner.student, engine=Gone(end_id=0)))
    rounds.evaluators[0] = replace(rounds.evaluators[0], collector=replace(collector, runner=alone))
    with pytest.raises(DataError, match="3 of 3 evaluation episodes after round 0 failed"):
        trainer.fit(module, datamodule=datamodule)
    play(tmp_path)
    assert rows(tmp_path) == rows(whole()[0])


class Unsure(ScriptedEngine):
    """An engine that never answers the first task."""

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Generation:
        if sampling.key is not None and sampling.key.episode_index == 0:
            raise EngineError("gone")
        return await super().generate(prompt_ids, sampling)


def test_failures_of_the_last_evaluation_are_played_again_by_a_resume(tmp_path: Path, whole) -> None:
    cfg = compose_checked("train", [*SMALL])
    trainer, module, datamodule, rounds = build_training(cfg, build_run(cfg, tmp_path, "run"), "run", StopAt(None))
    collector = rounds.evaluators[0].collector
    student = collector.runner.student
    engine = Unsure(end_id=student.chat.end_id)
    unsure = replace(collector.runner, student=replace(student, engine=engine))
    rounds.evaluators[0] = replace(rounds.evaluators[0], collector=replace(collector, runner=unsure))
    trainer.fit(module, datamodule=datamodule)
    rounds.finish(trainer, module)
    assert [row["eval/num_failed"] for row in rows(tmp_path)] == [1, 1, 1], "two thirds are played: the run goes on"
    assert not any("eval/success_rate" in row for row in rows(tmp_path))
    with pytest.raises(DataError, match=r"1 of 3 eval episodes failed .* resume the run"):
        rounds.check_last_rates()
    assert not play(tmp_path).seen
    assert ["eval/success_rate" in row for row in rows(tmp_path)] == [False, False, True], "whose students are gone"
    assert rows(tmp_path)[-1] == rows(whole()[0])[-1]
    assert metrics(tmp_path)[-1] == metrics(whole()[0])[-1]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder).state_dict())


def is_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.equal(one[name], other[name])) for name in one)


@pytest.mark.parametrize("stop_at", [None, 40])
def test_the_student_of_every_round_is_kept_where_that_is_asked_for(tmp_path: Path, stop_at: int | None) -> None:
    if stop_at is not None:
        play(tmp_path, "keep_students=all", stop_at=stop_at)
    cfg = compose_checked("train", [*SMALL, "keep_students=all"])
    run = build_run(cfg, tmp_path, "run")
    trainer, module, datamodule, rounds = build_training(cfg, run, "run", StopAt(None))
    path = tmp_path / CHECKPOINT
    trainer.fit(module, datamodule=datamodule, ckpt_path=path if path.exists() else None, weights_only=False)
    rounds.finish(trainer, module)
    run.student.save(tmp_path / "student")
    kept = [weights_of(tmp_path / "student_rounds" / name) for name in ("000", "001", "002")]
    assert len(list((tmp_path / "student_rounds").iterdir())) == 3
    assert not is_same(kept[0], kept[1])
    assert is_same(kept[2], weights_of(tmp_path / "student"))


def test_of_students_only_the_best_by_validation_stays_where_that_is_asked_for(tmp_path: Path) -> None:
    play(tmp_path, "keep_students=best")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best_round"] == best_round(summary["rounds"]) == 0, "the scripted engine solves nothing"
    assert [path.name for path in (tmp_path / "student_rounds").iterdir()] == ["000"]


def test_the_best_round_is_the_first_of_the_highest_rate_on_the_validation_tasks() -> None:
    rates = [0.2, 0.6, None, 0.6, 0.1]
    rated = [{} if rate is None else {"validation/success_rate": rate} for rate in rates]
    found = [{"round": float(index), **row} for index, row in enumerate(rated)]
    assert best_round(found) == 1
    assert best_round([{"round": 0.0, "eval/success_rate": 1.0}]) is None


def test_a_better_student_replaces_the_one_that_was_kept(tmp_path: Path) -> None:
    cfg = compose_checked("train", [*SMALL])
    kept = KeptStudents(student=build_run(cfg, tmp_path, "run").student, folder=tmp_path / "kept", which="best")
    for round_index, best in enumerate([0, 1, 1]):
        kept.keep(round_index, best)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["001"]


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    play(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert not play(tmp_path).seen
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("stop_at", [None, 10])
def test_success_ends_a_run_early_also_when_it_is_resumed(tmp_path: Path, stop_at: int | None) -> None:
    early = "evaluation.stop_at_success=0.0"
    before = play(tmp_path, early, stop_at=stop_at)
    after = play(tmp_path, early)
    assert set(before.seen) | set(after.seen) == set(range(1, 6)), "one round was trained"
    assert [row["round"] for row in rows(tmp_path)] == [0]
    assert not (tmp_path / "rounds" / "001").exists()
    assert not play(tmp_path, early).seen


@pytest.mark.parametrize("is_solved", [False, True])
def test_a_run_ends_early_by_the_validation_tasks_and_not_by_those_that_are_reported(
    tmp_path: Path, is_solved: bool
) -> None:
    cfg = compose_checked("train", [*SMALL, "evaluation.stop_at_success=0.5"])
    trainer, module, _, rounds = build_training(cfg, build_run(cfg, tmp_path, "run"), "run", StopAt(None))
    rates = {"eval/success_rate": float(not is_solved), "validation/success_rate": float(is_solved)}
    rounds.record.rows = [{"round": 0.0, "round/num_steps": 5.0, **rates}]
    rounds.collector.collect(0, num_labels=40)
    rounds.ensure_round(trainer, module, 1)
    assert rounds.store.is_closed(1) == (not is_solved)
    assert trainer.should_stop == is_solved


def test_a_row_that_is_logged_again_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for step in (10, 20):
        logger.log_metrics({"trainer/global_step": step, "train/loss": 1.0})
    logger.log_metrics({"round": 0, "eval/success_rate": 0.5})
    logger = CsvLogger(path)
    logger.log_metrics({"trainer/global_step": 20, "train/loss": 2.0})
    logger.log_metrics({"round": 0, "eval/success_rate": 0.5, "new": 1})
    logger.log_metrics({"trainer/global_step": 30, "train/loss": 3.0})
    kept = [(row["trainer/global_step"], row["round"], row["train/loss"]) for row in read_csv(path)]
    assert kept == [("10", "", "1.0"), ("20", "", "2.0"), ("", "0", ""), ("30", "", "3.0")]


@pytest.mark.parametrize("cut", [1, 2, 5, 7])
def test_a_row_that_a_kill_has_cut_is_dropped_and_logged_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.csv"
    logger = CsvLogger(path)
    for step in (10, 20):
        logger.log_metrics({"trainer/global_step": step, "train/loss": 0.25 * step})
    path.write_bytes(path.read_bytes()[:-cut])
    logger = CsvLogger(path)
    for step in (20, 30):
        logger.log_metrics({"trainer/global_step": step, "train/loss": 0.25 * step})
    assert [(row["trainer/global_step"], row["train/loss"]) for row in read_csv(path)] == [
        ("10", "2.5"),
        ("20", "5.0"),
        ("30", "7.5"),
    ]


@pytest.mark.kill
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("engine", ["scripted", "hf"])
def test_three_kills_change_nothing(engine: str) -> None:
    done = subprocess.run(
        [sys.executable, KILLS, "--kills", "3", "--engine", engine], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
