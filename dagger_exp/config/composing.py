"""Compose the config of a run, and name the run by its method and by every choice of it that differs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from dagger_exp.analysis.settings import flat
from dagger_exp.config.mistakes import CONF_FOLDER, said_in_one_sentence
from dagger_exp.config.schema import register_schema
from dagger_exp.errors import ConfigError

GROUPS_OF_METHODS = ("mixing", "schedule")
VALUES_OF_METHODS = ("labeler.turns", "filter.keep", "loss.normalize", "aggregation")
"""The choices that make a method; the mixing is fixed, and another choice of the others is a part of the run's name."""
AS_IN_RUN = ("env", "scaffold", "sandbox", "rollout", "evaluation", "student.max_context_tokens")
"""What an evaluation takes from the run that made the student."""


@contextmanager
def initialized() -> Iterator[None]:
    """Have Hydra read `conf/`; within it, files are read once for all configs that are composed."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(CONF_FOLDER, version_base="1.3"):
        yield


def composed(command: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config of a command with Hydra's own in its node `hydra`; Hydra is initialized.

    Raises:
        ConfigError: one sentence that names the key and, where one is near, what was probably meant.
    """
    searched = tuple(override for override in overrides if override.startswith("hydra.searchpath="))
    with said_in_one_sentence(command, overrides):
        cfg = compose(command, list(overrides), return_hydra_config=True)
        name = name_of(cfg, command, searched)
    if not any(override.startswith("name=") for override in overrides):
        cfg.name = name
    return cfg


def compose_checked(command: str, overrides: Sequence[str]) -> DictConfig:
    """Return the config of a command, without making a run folder.

    Raises:
        ConfigError: as `composed`.
    """
    with initialized():
        return without_hydra(composed(command, overrides))


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own."""
    copy = cfg.copy()
    with open_dict(copy):
        del copy["hydra"]
    return copy


def name_of(cfg: DictConfig, command: str, searched: tuple[str, ...]) -> str:
    """Return the name of the method, and after it each choice that is not the method's own.

    Raises:
        ConfigError: the mixing is that of another method.
    """
    made, method = made_of(cfg), cfg.hydra.runtime.choices.method
    own = made_of_method(method, command, searched)
    if made["mixing"] != own["mixing"]:
        methods = GlobalHydra.instance().config_loader().get_group_options("method")
        theirs = {other: made_of_method(other, command, searched) for other in methods}
        same = [other for other in methods if theirs[other]["mixing"] == made["mixing"]]
        for other in sorted(same, key=lambda other: theirs[other]["schedule"] != made["schedule"])[:1]:
            raise ConfigError(
                f"mixing={made['mixing']} is not method={method}; choose method={other}, and leave out mixing and "
                "schedule."
            )
    return "_".join([cfg.name, *differing(made, own)])


def differing(made: Mapping[str, Any], own: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs, as `schedule-constant`; of another option of a group its name only."""
    for key, value in made.items():
        group, _, below = key.partition(".")
        if own.get(key) != value and not (below and made.get(group) != own.get(group)):
            yield slug(f"{key.rpartition('.')[2]}-{value}")


def slug(text: str) -> str:
    """Return a text of letters, digits, dots and dashes, for names of folders and W&B ids."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")


def made_of(cfg: DictConfig) -> dict[str, Any]:
    """Return the choices that make a method, with the values of its mixing and its schedule."""
    made = {group: cfg.hydra.runtime.choices[group] for group in GROUPS_OF_METHODS}
    made |= {key: OmegaConf.select(cfg, key) for key in VALUES_OF_METHODS}
    below: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, list(GROUPS_OF_METHODS)))
    return made | flat(below)


@cache
def made_of_method(method: str, command: str, searched: tuple[str, ...]) -> dict[str, Any]:
    """Return the choices of a method where nothing else is chosen."""
    return made_of(compose(command, [*searched, f"method={method}"], return_hydra_config=True))


def load_checked(folder: Path) -> DictConfig:
    """Return the config that a run has saved.

    Raises:
        ConfigError: there is no run in that folder, or its config cannot be read.
    """
    path = folder / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"resume={folder} is not a run folder: it has no .hydra/config.yaml.")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read; restore it, or start a new run.") from error
    if not cfg or not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path} is empty; restore it, or start a new run.")
    return cfg


def as_in_run(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> DictConfig:
    """Return a config with the env, lengths and tasks of a run, but for what was typed.

    Args:
        cfg: of the evaluation.
        folder: of the run.
        overrides: as they were typed; another env has its own scaffold and sandbox.

    Raises:
        ConfigError: the run's config cannot be read, or a bundle was typed, whose choices are not to be told from
            defaults.
    """
    theirs = load_checked(folder)
    typed = {override.partition("=")[0].lstrip("+") for override in overrides}
    if bundles := typed & {"experiment", "debug"}:
        raise ConfigError(
            f"{min(bundles)}=... sets an env and lengths, which an evaluation takes from its student's run; leave it "
            "out, or name what shall differ, as in env=textworld evaluation.tasks=20."
        )
    merged = OmegaConf.create(OmegaConf.to_container(cfg))  # free of the schema, which takes no whole nodes
    for key in AS_IN_RUN:
        if key not in typed and not (key in ("scaffold", "sandbox") and "env" in typed):
            node = OmegaConf.select(theirs, key)
            if key in ("rollout", "evaluation"):  # what is younger than the run keeps its default
                node = OmegaConf.merge(cfg[key], node)
            OmegaConf.update(merged, key, node, merge=False)
    for name in typed - set(AS_IN_RUN):
        if name.startswith(tuple(f"{key}." for key in AS_IN_RUN)):
            OmegaConf.update(merged, name, OmegaConf.select(cfg, name))
    assert isinstance(merged, DictConfig)
    return merged
