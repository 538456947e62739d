"""What was typed? Options, overrides and `resume=FOLDER`, looked at before Hydra makes a run folder."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from dagger_exp.config import check, compose_checked, load_checked
from dagger_exp.errors import ConfigError
from dagger_exp.mistakes import said_in_one_sentence


def looked_at(arguments: list[str], command: str) -> list[str]:
    """Return the arguments for Hydra, once they were found to be those of a legal run.

    Raises:
        ConfigError: one sentence that says what to change.
    """
    resume = [argument for argument in arguments if argument.startswith("resume=")]
    if resume:
        if len(arguments) > 1:
            raise ConfigError("resume=FOLDER takes every choice from that run; remove the other arguments.")
        return resumed(resume[0].partition("=")[2], command)
    options = parsed(arguments)
    if runs(options) and not (options.config_name or options.config_dir or options.config_path):
        for overrides in jobs(options.overrides, command) if options.multirun else [options.overrides]:
            check(compose_checked(command, overrides), command)
    return arguments


def runs(options: argparse.Namespace) -> bool:
    """Whether a job is run, and not only something shown."""
    shows = (options.help, options.hydra_help, options.cfg, options.info, options.shell_completion)
    return not any(shows) and options.experimental_rerun is None


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse Hydra's options; what its parser complains of becomes one sentence."""
    complaint = io.StringIO()
    try:
        with redirect_stderr(complaint):
            return get_args_parser().parse_args(arguments)
    except SystemExit as end:
        if not end.code:
            raise  # --version
        said = complaint.getvalue().strip().rpartition("error: ")[2]
        raise ConfigError(f"{said}; overrides are KEY=VALUE without dashes, see --help.") from end


def jobs(overrides: Sequence[str], command: str) -> Iterator[list[str]]:
    """Yield the overrides of every job of a sweep; none where only the sweeper itself knows them."""
    with said_in_one_sentence(command, overrides):
        read = OverridesParser.create().parse_overrides(list(overrides))
    if any(override.is_interval_sweep() or "glob(" in str(override.input_line) for override in read):
        return
    sweeps = [
        [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in read
    ]
    yield from (list(choice) for choice in itertools.product(*sweeps))


def resumed(typed: str, command: str) -> list[str]:
    """Return the arguments that start the run of a folder again; every choice is the run's.

    Raises:
        ConfigError: there is no run in that folder, or it is one of another command.
    """
    folder = Path(typed).expanduser().resolve()
    cfg = load_checked(folder)
    began = (_field(folder / "manifest.json", "command") or [f"dagger-{command}"])[0]
    if began != f"dagger-{command}":
        raise ConfigError(f"resume={typed} is a run of {began}; go on with: {began} resume={typed}")
    if _field(folder / "status.json", "state") == "finished":
        print(f"{typed} is finished; there is nothing to do.")
        sys.exit(0)
    check(cfg, command)
    place = "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"
    # `.hydra/` is not written again: a kill in that moment would leave a run that cannot be resumed.
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.job.chdir=false", "hydra.output_subdir=null"]
    return ["--config-dir", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={place}", *quiet]


def _field(path: Path, name: str) -> Any:
    """Return a field of a JSON file, None where there is none; what is damaged is said by who needs it."""
    try:
        return json.loads(path.read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None


def announce(arguments: Sequence[str], command: str) -> None:
    """Print a first line at once: the libraries take seconds to load. Silent where something is only shown."""
    if "LOCAL_RANK" not in os.environ and not {a for a in arguments if a.startswith("-")} - {"-m", "--multirun"}:
        print(f"dagger-{command}: loading", *arguments, flush=True)
