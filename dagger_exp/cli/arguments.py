"""What was typed? Options, overrides and `resume=FOLDER`, looked at before Hydra makes a run folder."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser

from dagger_exp.cli.jobs import is_first_process, refuse_second
from dagger_exp.cli.manifest import check_same
from dagger_exp.config.checks import check, compose_checked, load_checked
from dagger_exp.errors import ConfigError


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
    if is_sweep(options):
        return arguments  # its jobs are looked at one by one when it is expanded
    if any(override.startswith("dry_run=") for override in options.overrides):
        raise ConfigError("dry_run=true shows the jobs of a sweep; add -m or sweep=NAME, or use --cfg job for a run.")
    if runs(options) and not (options.config_name or options.config_dir or options.config_path):
        check(cfg := compose_checked(command, options.overrides), command)
        if (folder := typed_folder(options.overrides)) is not None and is_first_process():
            refuse_second(folder)  # before Hydra writes its choices over those of the run that is there
            check_same(folder, cfg, command)
    return arguments


def typed_folder(overrides: Sequence[str]) -> Path | None:
    """Return the run folder that was typed, None where a new one is made."""
    found = [o for o in OverridesParser.create().parse_overrides(list(overrides)) if o.key_or_group == "hydra.run.dir"]
    value = found[-1].value() if found else None
    return None if value is None else Path(getattr(value, "text", str(value))).resolve()


def is_sweep(options: argparse.Namespace) -> bool:
    """Whether several runs are asked for."""
    named = any(re.fullmatch(r"\+?sweep=(?!null$).*", override) for override in options.overrides)
    return runs(options) and (options.multirun or named)


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
    place = quoted(folder)
    # `.hydra/` is not written again: a kill in that moment would leave a run that cannot be resumed.
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.job.chdir=false", "hydra.output_subdir=null"]
    return ["--config-dir", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={place}", *quiet]


def quoted(folder: Path) -> str:
    """Return a path as the value of an override."""
    return "'" + str(folder).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _field(path: Path, name: str) -> Any:
    """Return a field of a JSON file, None where there is none; what is damaged is said by who needs it."""
    try:
        return json.loads(path.read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return None


SECRET = re.compile(
    r"(?<=//)[^/\s]*(?=@)|(?<=api_key_env=)(?![A-Z][A-Z0-9_]*$).+"
    r"|(?i:(?<=api[_-]key[=,])|(?<=secret=)|(?<=password=)|(?<=authorization=)|(?<=token=)).+"
)
"""What is a key or a password, or may be one, where none belongs; it is refused, and not shown before."""


def announce(arguments: Sequence[str], command: str) -> None:
    """Print a first line at once: the libraries take seconds to load. Silent where something is only shown."""
    is_shown = {argument for argument in arguments if argument.startswith("-")} - {"-m", "--multirun"}
    if is_first_process() and not is_shown:
        print(f"dagger-{command}: loading", *(SECRET.sub("***", argument) for argument in arguments), flush=True)
