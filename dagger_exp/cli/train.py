"""dagger-train: the main job.

dagger-train                                    DAgger on repo_repair, two minutes on a laptop
dagger-train method=sft seed=3                  another method, another seed
dagger-train schedule=linear schedule.floor=0.2 another beta
dagger-train resume=outputs/runs/FOLDER         go on where a run was interrupted
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.run import open_manifest, run_command

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console script."""
    if "LOCAL_RANK" not in os.environ and not any(a.startswith("-") for a in sys.argv[1:]):
        print("dagger-train: loading", *sys.argv[1:], flush=True)
    run_command("train", train)


def train(cfg: DictConfig, folder: Path) -> None:
    """Train a student as configured, into its run folder."""
    from dagger_exp.config import check

    check(cfg)
    from dagger_exp.build import CHECKPOINT, build_run, build_training
    from dagger_exp.cli.terminal import Terminal

    run_id = str(open_manifest(folder)["run_id"])
    run = build_run(cfg, folder, run_id)
    with Terminal(cfg, run.student.num_parameters, folder) as terminal:
        trainer, module, datamodule, rounds = build_training(cfg, run, run_id, terminal)
        run.student.save_format(folder / "student")
        checkpoint = folder / "checkpoints" / f"{CHECKPOINT}.ckpt"
        try:
            trainer.fit(
                module, datamodule=datamodule, ckpt_path=checkpoint if checkpoint.exists() else None, weights_only=False
            )
        except SystemExit as stop:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from stop
        if trainer.is_global_zero:
            rounds.finish(module)
            run.student.save(folder / "student")
            rounds.record.close(folder)
            terminal.finish()


if __name__ == "__main__":
    main()
