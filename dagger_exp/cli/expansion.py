"""Which jobs is a sweep? What was typed, expanded with Hydra's own parser and checked before anything is launched."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.hydra import Hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict

from dagger_exp.cli.arguments import quoted
from dagger_exp.cli.manifest import config_hash, slug
from dagger_exp.config.checks import check
from dagger_exp.errors import ConfigError

MAX_SLUG = 60


@dataclass(frozen=True, slots=True)
class Job:
    """A run of a sweep: its folder's name, the overrides that make it, those that differ, and its config."""

    name: str
    overrides: list[str]
    differs: Mapping[str, str]
    cfg: DictConfig


@dataclass(frozen=True, slots=True)
class Sweep:
    """What was typed, expanded. `name` is that of the folder."""

    name: str
    folder: Path
    jobs: list[Job]
    master: DictConfig


def overrides_of(options: argparse.Namespace) -> list[str]:
    """Return what was typed as overrides, the search path among them.

    Raises:
        ConfigError: an option that a sweep cannot take, or a folder that is not there.
    """
    if options.config_name or options.config_path:
        raise ConfigError("--config-name and --config-path cannot be swept; put an option into a folder: --config-dir.")
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise ConfigError(f"--config-dir {options.config_dir} is no folder.")
    for override in options.overrides:
        if override.startswith("dry_run=") and override not in ("dry_run=true", "dry_run=false"):
            raise ConfigError(f"{override} is neither dry_run=true nor dry_run=false.")
    place = quoted(Path(f"file://{Path(options.config_dir).resolve()}")) if options.config_dir else ""
    searched = [f"hydra.searchpath=[{place.replace('file:/', 'file:///', 1)}]"] if place else []
    return [*searched, *(override for override in options.overrides if not override.startswith("dry_run="))]


def expanded(hydra: Hydra, typed: Sequence[str], command: str) -> Sweep:
    """Return the jobs of a sweep, with Hydra's own parser.

    Raises:
        ConfigError: a job is not legal, or two are the same.
    """
    fixed, swept = split(hydra, typed)
    first = [f"{key}={values[0]}" for key, values in swept.items()]  # keys of an option are known beside it only
    chosen = hydra.compose_config(command, [*fixed, *first], RunMode.MULTIRUN)
    params = {key: str(value) for key, value in (chosen.hydra.sweeper.params or {}).items()}
    more_fixed, more_swept = split(hydra, [f"{key}={value}" for key, value in params.items()])
    typed_keys = {override.split("=", 1)[0] for override in typed}
    fixed += [override for override in more_fixed if override.split("=", 1)[0] not in typed_keys]
    swept = {key: values for key, values in more_swept.items() if key not in typed_keys} | swept
    name = chosen.sweep_name or slug("-".join(swept)) or "single"
    fixed = [o for o in fixed if not o.startswith("sweep_name=")] + [f"sweep_name={name}"]
    first = [f"{key}={values[0]}" for key, values in swept.items()]
    master = hydra.compose_config(command, [*fixed, *first, "hydra.mode=MULTIRUN"], RunMode.MULTIRUN)
    folder = Path(str(master.hydra.sweep.dir)).resolve()
    jobs = [checked_job(hydra, fixed, choice, command, folder) for choice in choices(swept)]
    names = [one.name for one in jobs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"{len(twice)} jobs are in the sweep twice, as {twice.pop()}; remove one of the values.")
    return Sweep(name, folder, jobs, master)


def split(hydra: Hydra, overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the overrides with one value, and the values of those with several.

    Raises:
        ConfigError: a range without steps.
    """
    fixed: list[str] = []
    swept: dict[str, list[str]] = {}
    parser = OverridesParser.create(config_loader=hydra.config_loader)
    for override in parser.parse_overrides(list(overrides)):
        if not override.is_sweep_override():
            fixed.append(str(override.input_line))
        elif override.is_discrete_sweep():
            swept[override.get_key_element()] = list(override.sweep_string_iterator())
        else:
            raise ConfigError(f"{override.input_line} has no steps; list values, as in {override.key_or_group}=0,0.5,1")
    return fixed, swept


def choices(swept: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Yield every combination."""
    for values in itertools.product(*swept.values()):
        yield dict(zip(swept, values, strict=True))


def checked_job(hydra: Hydra, fixed: Sequence[str], choice: Mapping[str, str], command: str, folder: Path) -> Job:
    """Return a job of the sweep, checked; one that is there under another slug keeps its folder."""
    overrides = [*fixed, *(f"{key}={value}" for key, value in choice.items())]
    cfg = hydra.compose_config(command, overrides, RunMode.RUN)
    with open_dict(cfg):
        del cfg["hydra"]
    check(cfg, command)
    readable = slug("-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in choice.items()))[:MAX_SLUG]
    digits = config_hash(cfg, command)
    there = next((path.name for path in folder.glob(f"*_{digits}")), None)
    return Job(there or f"{readable.strip('-.') or 'job'}_{digits}", overrides, choice, cfg)
