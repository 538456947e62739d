"""dagger-evaluate: a student alone on held-out tasks.

dagger-evaluate student.init=outputs/runs/FOLDER                 the student of a run
dagger-evaluate student.init=FOLDER/checkpoints/last.ckpt        a checkpoint of it
dagger-evaluate student=hf student.path=FOLDER env=textworld     any Hugging Face folder, any env
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.manifest import open_manifest
from dagger_exp.cli.run import run_command
from dagger_exp.store.files import write_json

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console script."""
    run_command("evaluate", evaluate)


def evaluate(cfg: DictConfig, folder: Path) -> None:
    """Play the held-out tasks once; write the episodes and `evaluation.json`, and print the rates."""
    from dagger_exp.config import check

    check(cfg, "evaluate")
    from dagger_exp.build import build_run
    from dagger_exp.cli.terminal import Terminal
    from dagger_exp.evaluation.metrics import evaluation_metrics, stop_reasons

    run = build_run(cfg, folder, str(open_manifest(folder, cfg)["run_id"]))
    with Terminal(cfg, run.student.num_parameters, folder, "evaluate") as terminal:
        terminal.begin("evaluate", 0, len(run.evaluator.tasks))
        episodes = run.evaluator.evaluate(0, lambda episode: terminal.advance(1, episode=episode))
    metrics, reasons = evaluation_metrics(episodes), dict(stop_reasons(episodes))
    write_json(folder / "evaluation.json", {**metrics, "stop_reasons": reasons})
    for name, value in metrics.items():
        print(f"  {name:24} {value:.4g}")
    print(f"  {'stop reasons':24} {', '.join(f'{count} {reason}' for reason, count in reasons.items())}")
    lies = {"evaluation.json": "these numbers", "eval/*.parquet": "a row per turn"}
    terminal.finish(lies=lies, also={"dagger-evaluate evaluation.seed=1 ...": "the same tasks, other coins"})


if __name__ == "__main__":
    main()
