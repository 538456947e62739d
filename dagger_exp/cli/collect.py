"""dagger-collect: rollouts and labels without training; appends rounds, never touches a closed one.

dagger-collect rounds.num_rounds=1 rounds.labels=2000 method=sft                 demonstrations
dagger-collect demonstrations=openhands demonstrations.files=FILE rounds.num_rounds=1  round 0 from trajectories
dagger-collect labeler.turns=none rounds.labels=null rounds.tasks=100                       episodes without labels
dagger-collect store=outputs/runs/FOLDER student.init=outputs/runs/FOLDER             more rounds for a store
"""

from __future__ import annotations

import shlex
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from dagger_exp.cli.manifest import open_manifest
from dagger_exp.cli.run import run_command
from dagger_exp.errors import ConfigError
from dagger_exp.store.files import read_json, write_json
from dagger_exp.store.store import Store

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console script."""
    run_command("collect", collect)


def collect(cfg: DictConfig, folder: Path) -> None:
    """Collect `rounds.num_rounds` more rounds."""
    from dagger_exp.config.checks import check, per_round

    check(cfg, "collect")
    rounds, run_id, first = place(cfg, folder)
    from dagger_exp.cli.terminal import Terminal, chosen
    from dagger_exp.config.build import build_run, place_student
    from dagger_exp.training.record import RunRecord

    record = RunRecord(folder=folder, loggers=[])
    budgets = per_round(cfg, "labels") or [None] * cfg.rounds.num_rounds
    num_episodes = None if cfg.rounds.tasks is None else cfg.rounds.tasks * cfg.rollout.episodes_per_task
    with (
        closing(build_run(cfg, folder, run_id, store_folder=rounds)) as run,
        Terminal(cfg, run.student.num_parameters, rounds.parent, "collect") as terminal,
    ):
        run.collector.store.claim()
        run.collector.runner.watchdog.say = terminal.warn
        place_student(run, cfg.trainer.accelerator)
        run.engine.load_weights(first, run.student.model)  # the version of one that was trained on the rounds before
        for index, budget in enumerate(budgets, start=first):
            total = 0 if run.collector.is_imported(index) else budget or num_episodes or 0
            terminal.begin("collect", index, total, beta=run.mixing.beta(index))
            episodes = run.collector.collect(
                index,
                num_labels=budget,
                num_episodes=num_episodes,
                on_episode=lambda episode: terminal.advance(
                    1 if num_episodes is not None else episode.num_labels, episode=episode
                ),
            )
            record.failures("collect", index, [e for e in episodes if e.stop_reason.is_infrastructure])
            beta = run.mixing.beta(index)
            row = {"round": index, **run.collector.store.manifest(index)["counts"]}
            terminal.end_round(row if beta is None else {**row, "round/beta": beta})
    lies = {"rounds/*/episodes.parquet": "a row per turn: who acted, the action, the label"}
    again = [*chosen(folder, but=("store", "demonstrations")), shlex.quote(f"store={rounds.parent}")]
    terminal.finish(lies=lies, also={f"dagger-collect {' '.join(again)}": "more rounds for this store"})


def place(cfg: DictConfig, folder: Path) -> tuple[Path, str, int]:
    """Return the folder of the rounds, the run they belong to, and the first round to collect.

    Raises:
        ConfigError: `store` names no run, one that has not ended, or one of another env.
        StoreError: it is damaged, or of another schema version.
    """
    if cfg.store is None:
        return folder / "rounds", str(open_manifest(folder, cfg)["run_id"]), 0
    rounds = Path(cfg.store) / "rounds"
    if not (rounds / "store.json").exists():
        raise ConfigError(f"store={cfg.store} holds no rounds/; give the folder of a run.")
    store = Store.open(rounds)
    _check_store(cfg, Path(cfg.store))
    Store(rounds, store.run_id).claim()  # or another one would take the same rounds for its own
    manifest = open_manifest(folder, cfg)
    if "first_round" not in manifest:  # a resume goes on with the same rounds
        manifest["first_round"] = store.next_round()
        write_json(folder / "manifest.json", manifest)
    return rounds, store.run_id, int(manifest["first_round"])


def _check_store(cfg: DictConfig, folder: Path) -> None:
    """Look whether the run of a store has ended, since it would go on with our rounds, and plays in the same world."""
    from dagger_exp.config.composing import load_checked

    status, config = folder / "status.json", folder / ".hydra" / "config.yaml"
    state = read_json(status, "resume that run")["state"] if status.exists() else "finished"
    if state != "finished":
        raise ConfigError(
            f"store={cfg.store} is of a run that is {state}, and would take these rounds for its own when it goes on: "
            "bring it to its end first, or collect into a new store."
        )
    theirs = load_checked(folder) if config.exists() else cfg
    for node in ("env", "scaffold"):
        held, now = (OmegaConf.select(of, f"{node}._target_") for of in (theirs, cfg))
        if held != now:
            raise ConfigError(f"store={cfg.store} holds episodes of {held}, not of {now}: choose the same {node}.")


if __name__ == "__main__":
    main()
