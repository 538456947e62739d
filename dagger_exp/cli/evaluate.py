"""dagger-evaluate: a student alone on held-out tasks.

dagger-evaluate student.init=outputs/runs/FOLDER                 the student of a run, as the run evaluates it
dagger-evaluate student.init=FOLDER/checkpoints/last.ckpt        a checkpoint of it
dagger-evaluate student.init=FOLDER/student_rounds/003           the student of a round, where the run keeps them
dagger-evaluate student=hf student.path=FOLDER env=textworld     any Hugging Face folder, any env
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.manifest import open_manifest, typed_for
from dagger_exp.cli.run import run_command
from dagger_exp.store.files import write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from dagger_exp.evaluation.evaluator import Evaluator
    from dagger_exp.training.progress import Progress

STOPS = "eval/num_stop_"


def main() -> None:
    """Entry point of the console script."""
    run_command("evaluate", evaluate)


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Play the held-out tasks once; write the episodes and `evaluation.json`, and print the rates."""
    from dagger_exp.config.checks import check
    from dagger_exp.config.composing import as_in_run

    if (trained := run_of(cfg.student)) is not None:
        cfg = as_in_run(cfg, trained, typed_for(folder))
    check(cfg, "evaluate")
    run_id = str(open_manifest(folder, cfg)["run_id"])  # before what takes long, and may be interrupted
    from dagger_exp.cli.terminal import Terminal, chosen
    from dagger_exp.config.build import build_run, place_student
    from dagger_exp.config.evaluators import build_evaluator
    from dagger_exp.evaluation.metrics import check_rate, evaluation_metrics
    from dagger_exp.training.record import RunRecord

    with (
        closing(build_run(cfg, folder, run_id)) as run,
        Terminal(cfg, run.student.num_parameters, folder, "evaluate") as terminal,
    ):
        evaluator = build_evaluator(cfg, run)
        run.collector.runner.watchdog.say = terminal.warn
        warn_of_few(cfg, [evaluator], terminal)
        place_student(run, cfg.trainer.accelerator)
        run.engine.load_weights(0, run.student.model)
        terminal.begin("evaluate", 0, evaluator.num_tasks, done=evaluator.num_done(0))
        episodes = evaluator.evaluate(0, lambda episode: terminal.advance(1, episode=episode))
    failed = [episode for episode in episodes if episode.stop_reason.is_infrastructure]
    RunRecord(folder=folder, loggers=[]).failures("evaluate", 0, failed)
    metrics = evaluation_metrics(episodes)
    write_json(folder / "evaluation.json", metrics)
    show(metrics)
    check_rate(metrics, "eval")
    lies = {"evaluation.json": "these numbers", "eval/000/episodes.parquet": "a row per turn"}
    typed = [word for word in chosen(folder, but=()) if not word.startswith("evaluation.temperature=")]
    again = " ".join([*typed, "evaluation.temperature=1.0"])
    terminal.finish(lies=lies, also={f"dagger-evaluate {again}": "the same tasks, sampled"})


def warn_of_few(cfg: DictConfig, evaluators: Sequence[Evaluator], progress: Progress) -> None:
    """Say that the env has fewer tasks than were asked for."""
    for evaluator in evaluators:
        key, what = ("tasks", "held-out") if evaluator.name == "eval" else ("validation_tasks", "validation")
        if evaluator.num_tasks < cfg.evaluation[key]:
            progress.warn(
                f"evaluation.{key} is {cfg.evaluation[key]}, but the env has {evaluator.num_tasks} {what} tasks: "
                "all of them."
            )


def show(metrics: Mapping[str, float]) -> None:
    """Print the metrics, the stop reasons that occurred in one line."""
    stops = {name: count for name, count in metrics.items() if name.startswith(STOPS)}
    for name, value in metrics.items():
        if name not in stops:
            print(f"  {name:24} {value:.4g}")
    said = (f"{count} {name.removeprefix(STOPS)}" for name, count in stops.items() if count)
    print(f"  {'stop reasons':24} {', '.join(said)}")


def run_of(student: DictConfig) -> Path | None:
    """Return the run folder that a student comes from, None where it is a plain model."""
    given = student.get("init") or student.get("path")
    folder = Path(given or "").expanduser()
    folder = folder.parent.parent if folder.suffix == ".ckpt" or folder.parent.name == "student_rounds" else folder
    return folder if given and (folder / ".hydra" / "config.yaml").is_file() else None


if __name__ == "__main__":
    main()
