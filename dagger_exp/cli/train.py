"""dagger-train: the main job.

dagger-train                                    DAgger on repo_repair, a minute or two on a laptop
dagger-train method=sft seed=3                  another method, another seed
dagger-train schedule=linear schedule.floor=0.2 another beta
dagger-train resume=outputs/runs/FOLDER         go on where a run was interrupted
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.evaluate import warn_of_few
from dagger_exp.cli.jobs import is_first_process
from dagger_exp.cli.manifest import open_manifest
from dagger_exp.cli.run import run_command
from dagger_exp.errors import ConfigError
from dagger_exp.store.files import ASIDE_SUFFIX

if TYPE_CHECKING:
    import lightning
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console script."""
    run_command("train", train)


def train(cfg: DictConfig, folder: Path) -> None:
    """Train a student as configured, into its run folder."""
    from dagger_exp.config.checks import check

    check(cfg)
    manifest = open_manifest(folder, cfg)
    run_id = str(manifest["run_id"])
    from dagger_exp.cli.terminal import Terminal
    from dagger_exp.config.build import CHECKPOINT, build_run, build_training
    from dagger_exp.training.progress import Silent

    refuse_another_adapter(cfg, manifest["command"][1:])
    is_first = is_first_process()
    if is_first:
        remove_asides(folder)
    with (
        closing(build_run(cfg, folder, run_id)) as run,
        Terminal(cfg, run.student.num_parameters, folder) if is_first else nullcontext(Silent()) as progress,
    ):
        trainer, module, datamodule, rounds = build_training(cfg, run, run_id, progress, manifest)
        path = folder / CHECKPOINT
        if is_first:
            if not path.exists():  # later starts may find other weights where these came from, and keep the copy
                run.student.save_format(folder / "student")
            warn_of_few(cfg, rounds.evaluators, progress)
        prepare_processes(cfg, folder)
        with together(trainer):
            checkpoint = path if path.exists() else None
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=False)
        if is_first:
            rounds.finish(trainer, module)
            run.student.save(folder / "student")
            rounds.record.close(folder)
            rounds.check_last_rates()
    if isinstance(progress, Terminal) and manifest["sweep"] is None:
        progress.finish()


def refuse_another_adapter(cfg: DictConfig, typed: Sequence[str]) -> None:
    """Refuse what was typed in vain: a student that is an adapter is trained on as it is."""
    from dagger_exp.training.model_folder import ModelFolder

    given = cfg.student.get("init") or cfg.student.get("path")
    vain = [override for override in typed if override.startswith(("student.lora", "student.finetuning=full"))]
    if vain and given and ModelFolder.at(str(given)).has_adapter:
        raise ConfigError(
            f"{vain[0]} changes nothing, since {given} is an adapter, which is trained on as it is: leave that out, or "
            "start from a model."
        )


def remove_asides(folder: Path) -> None:
    """Remove what a killed process has written aside; the stores remove their own."""
    places = (folder.glob("*"), *((folder / name).rglob("*") for name in ("checkpoints", "student", "student_rounds")))
    for aside in [path for place in places for path in place if path.suffix == ASIDE_SUFFIX]:
        shutil.rmtree(aside) if aside.is_dir() else aside.unlink(missing_ok=True)


def prepare_processes(cfg: DictConfig, folder: Path) -> None:
    """Let the processes that Lightning starts, by this one's command, take the run as it stands in its folder."""
    from hydra.core.hydra_config import HydraConfig

    os.environ.setdefault("OMP_NUM_THREADS", str(cfg.num_threads))  # else Lightning sets torch's threads itself
    sys.argv[1:] = [f"resume={folder}"]
    HydraConfig.instance().cfg = None  # or Lightning adds overrides that are wrong in a sweep


@contextmanager
def together(trainer: lightning.Trainer) -> Iterator[None]:
    """Train in all processes: where that fails, none is left waiting for another."""
    try:
        yield
        end_others(trainer)
    except BaseException as error:
        end_others(trainer, kill=True)
        if isinstance(error, SystemExit) and trainer.is_global_zero:  # how Lightning ends after Ctrl-C
            raise KeyboardInterrupt from error
        if isinstance(error, SystemExit):
            sys.exit(0)  # the first process says what happened
        raise


def end_others(trainer: lightning.Trainer, *, kill: bool = False) -> None:
    """Wait for the processes that Lightning has started, if any."""
    processes = getattr(trainer.strategy.launcher, "procs", [])
    for process in processes:
        if kill:
            process.kill()
        process.wait()
    processes.clear()  # or Lightning's watcher answers a killed one with the kill of this one, before it has spoken


if __name__ == "__main__":
    main()
