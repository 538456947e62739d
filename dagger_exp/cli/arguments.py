"""What was typed? Hydra's options, overrides, and where a run lies that they begin or go on with."""

from __future__ import annotations

import argparse
import io
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from dagger_exp.cli.jobs import is_first_process, refuse_second, status_of
from dagger_exp.cli.manifest import began_as, check_same
from dagger_exp.config.checks import check
from dagger_exp.config.composing import composed, initialized, load_checked, without_hydra
from dagger_exp.config.mistakes import CONF_FOLDER, said_in_one_sentence
from dagger_exp.config.schema import register_schema
from dagger_exp.errors import ConfigError


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse Hydra's options; what its parser complains of becomes one sentence.

    Raises:
        ConfigError: there is no such option, or it is none for a run.
    """
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            options = get_args_parser().parse_args(arguments)
    except SystemExit as end:
        if not end.code:
            raise  # --version
        said = complaint.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"{said}; overrides are KEY=VALUE without dashes, see --help.") from end
    if options.config_name or options.config_path:
        raise ConfigError("--config-name and --config-path choose no run; put an option into a folder: --config-dir.")
    if options.config_dir and not Path(options.config_dir).is_dir():
        raise ConfigError(f"--config-dir {options.config_dir} is no folder.")
    return options


def only_shows(options: argparse.Namespace) -> bool:
    """Return whether something is shown and nothing is run."""
    shows = (options.help, options.hydra_help, options.cfg, options.info, options.shell_completion)
    return any(shows) or options.experimental_rerun is not None


def show(options: argparse.Namespace, command: str) -> None:
    """Let Hydra show its help, a config or its files."""
    register_schema()
    if options.cfg:
        with initialized():
            name = composed(command, overrides_of(options)).name
        place = sys.argv.index(options.overrides[0]) if options.overrides else len(sys.argv)
        sys.argv.insert(place, f"name={name}")  # beside the others, or Hydra's parser does not read it
    with said_in_one_sentence(command, sys.argv[1:]):
        hydra.main(version_base="1.3", config_path=CONF_FOLDER, config_name=command)(lambda cfg: None)()


def is_sweep(options: argparse.Namespace) -> bool:
    """Return whether several runs are asked for."""
    return options.multirun or any(re.fullmatch(r"\+?sweep=(?!null$).*", override) for override in options.overrides)


def overrides_of(options: argparse.Namespace) -> list[str]:
    """Return what was typed as overrides, the folder of `--config-dir` among them, `dry_run` not."""
    typed = [override for override in options.overrides if not override.startswith("dry_run=")]
    if options.config_dir:
        typed.insert(0, f"hydra.searchpath=[{quoted(f'file://{Path(options.config_dir).resolve()}')}]")
    return typed


def is_dry(options: argparse.Namespace) -> bool:
    """Return whether a sweep is shown only.

    Raises:
        ConfigError: `dry_run` is neither true nor false.
    """
    typed = [override for override in options.overrides if override.startswith("dry_run=")]
    if wrong := set(typed) - {"dry_run=true", "dry_run=false"}:
        raise ConfigError(f"{wrong.pop()} is neither dry_run=true nor dry_run=false.")
    return "dry_run=true" in typed


def begun(options: argparse.Namespace, command: str) -> tuple[DictConfig, Path]:
    """Return the config and the folder of a run that is asked for; the config is saved there as Hydra does it.

    Raises:
        ConfigError: the run is not legal, or its folder is another run's.
    """
    if is_dry(options):
        raise ConfigError("dry_run=true shows the jobs of a sweep; add -m or sweep=NAME, or use --cfg job for a run.")
    with initialized():
        whole = composed(command, overrides_of(options))
    check(cfg := without_hydra(whole), command)
    folder = Path(str(whole.hydra.run.dir)).absolute()
    if is_first_process():
        refuse_second(folder)
        check_same(folder, cfg, command)
    (folder / ".hydra").mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.masked_copy(whole, "hydra"), folder / ".hydra" / "hydra.yaml")
    OmegaConf.save(whole.hydra.overrides.task, folder / ".hydra" / "overrides.yaml")
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    return cfg, folder


def resumed(typed: str, command: str) -> tuple[DictConfig, Path]:
    """Return the config and the folder of a run that goes on; every choice is the run's.

    Raises:
        ConfigError: there is no run in that folder, it never began, or it is one of another command.
    """
    folder = Path(typed).expanduser().resolve()
    if (folder / ".hydra").is_dir() and not (folder / "manifest.json").exists():
        raise ConfigError(
            f"resume={typed} was ended before it began, and there is nothing to go on with: give the command that "
            f"started it once more, with hydra.run.dir={typed}"
        )
    cfg = load_checked(folder)
    if (folder / "manifest.json").exists() and (began := began_as(folder)) != f"dagger-{command}":
        raise ConfigError(f"resume={typed} is a run of {began}; go on with: {began} resume={typed}")
    if status_of(folder).get("state") == "finished":
        print(f"{typed} is finished; there is nothing to do.")
        sys.exit(0)
    check(cfg, command)
    refuse_second(folder)
    return cfg, folder


def quoted(text: str) -> str:
    """Return a text as the value of an override."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
