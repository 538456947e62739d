"""dagger-collect: rollouts and labels without training; appends rounds, never touches a closed one.

dagger-collect rounds.num_rounds=1 rounds.labels=2000 mixing=teacher schedule=none    demonstrations
dagger-collect store=outputs/runs/FOLDER student.init=outputs/runs/FOLDER             more rounds for a store
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dagger_exp.cli.run import open_manifest, run_command
from dagger_exp.errors import ConfigError
from dagger_exp.store.store import Store

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Entry point of the console script."""
    run_command("collect", collect)


def collect(cfg: DictConfig, folder: Path) -> None:
    """Collect `rounds.num_rounds` more rounds."""
    from dagger_exp.config import check, per_round

    check(cfg)
    from dagger_exp.build import build_run
    from dagger_exp.cli.terminal import Terminal

    manifest = open_manifest(folder)
    target = folder / "rounds" if cfg.store is None else Path(cfg.store) / "rounds"
    if cfg.store is not None and not (target / "store.json").exists():
        raise ConfigError(f"store={cfg.store} holds no rounds/; give the folder of a run.")
    run_id = str(manifest["run_id"]) if cfg.store is None else Store.open(target).run_id
    run = build_run(cfg, folder, run_id, store_folder=target)
    labels, first = per_round(cfg, "labels"), run.collector.store.next_round()
    with Terminal(cfg, run.student.num_parameters, target) as terminal:
        for place in range(cfg.rounds.num_rounds):
            budget = None if labels is None else labels[place]
            terminal.begin(
                "collect", first + place, budget or cfg.rounds.tasks or 0, beta=run.mixing.beta(first + place)
            )
            run.collector.collect(
                first + place,
                num_labels=budget,
                num_episodes=None if cfg.rounds.tasks is None else cfg.rounds.tasks * cfg.rollout.episodes_per_task,
                on_episode=lambda episode: terminal.advance(episode.num_labels if labels else 1, episode=episode),
            )
            terminal.end_round({"round": first + place, **run.collector.store.manifest(first + place)["counts"]})


if __name__ == "__main__":
    main()
