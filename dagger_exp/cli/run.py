"""What all commands share: the run folder, its manifest and status, and how a mistake is said."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from dagger_exp.config import CONF_FOLDER, compose_checked, register_schema
from dagger_exp.errors import ConfigError, DaggerError, StoreError
from dagger_exp.store.files import write_json

PACKAGES = ("dagger-exp", "torch", "transformers", "lightning", "hydra-core", "wandb", "pyarrow")
Job = Callable[[DictConfig, Path], None]


def run_command(config_name: str, job: Job) -> None:
    """Run a command: compose and check its config first, so that a typo is answered in one sentence."""
    try:
        arguments = resumed(sys.argv[1:])
        if not any(argument.startswith("-") for argument in arguments):
            compose_checked(config_name, arguments)
    except DaggerError as error:
        sys.exit(complain(error))
    sys.argv[1:] = arguments
    register_schema()
    hydra.main(version_base="1.3", config_path=CONF_FOLDER, config_name=config_name)(_guarded(job))()


def resumed(arguments: list[str]) -> list[str]:
    """Replace `resume=FOLDER` by the config of that run; every choice is the run's.

    Raises:
        ConfigError: there is no run in that folder, or other overrides are given beside.
    """
    folders = [argument.partition("=")[2] for argument in arguments if argument.startswith("resume=")]
    if not folders:
        return arguments
    if len(arguments) > 1:
        raise ConfigError("resume=FOLDER takes every choice from that run; remove the other overrides.")
    folder = Path(folders[0]).resolve()
    if not (folder / ".hydra" / "config.yaml").is_file():
        raise ConfigError(f"resume={folders[0]} is not a run folder: it has no .hydra/config.yaml.")
    quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.job.chdir=false"]
    return ["--config-dir", str(folder / ".hydra"), "--config-name", "config", f"hydra.run.dir={folder}", *quiet]


def _guarded(job: Job) -> Callable[[DictConfig], None]:
    def guarded(cfg: DictConfig) -> None:
        folder = Path(HydraConfig.get().runtime.output_dir)
        with told(folder):
            log_to(folder / "train.log")
            job(cfg, folder)

    return guarded


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """Write `status.json`, and turn what goes wrong into a sentence and an exit code."""
    try:
        _status(folder, "running")
        yield
        _status(folder, "finished")
    except KeyboardInterrupt:
        _status(folder, "interrupted")
        print(
            f"\ninterrupted; nothing that was committed is lost. Go on with:\n  dagger-train resume={folder}",
            file=sys.stderr,
        )
        sys.exit(130)
    except (DaggerError, OSError) as error:
        _status(folder, "failed", str(error))
        logging.getLogger(__name__).exception("the run failed")
        sys.exit(complain(error))
    except Exception as error:
        _status(folder, "failed", f"{type(error).__name__}: {error}")
        logging.getLogger(__name__).exception("the run failed")
        traceback.print_exc()
        sys.exit(1)


def complain(error: Exception) -> int:
    """Print an error as one sentence and return the exit code."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = (
            f"{error.filename or 'the output folder'}: {error.strerror}; free space or set another paths.output_folder."
        )
    print(f"error: {text}", file=sys.stderr)
    return 2


def open_manifest(folder: Path) -> dict[str, str]:
    """Return the run's manifest; written at its first start, read at a resume.

    Raises:
        StoreError: the manifest is damaged.
    """
    path = folder / "manifest.json"
    if path.exists():
        try:
            return json.loads(path.read_text())
        except ValueError as error:
            raise StoreError(f"{path} is damaged; restore it, or start a new run.") from error
    manifest = {
        "run_id": f"{re.sub(r'[^a-z0-9.-]+', '-', folder.name.lower())[:50]}-{secrets.token_hex(3)}",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
        "choices": dict(HydraConfig.get().runtime.choices),
        "command": ["dagger-" + Path(sys.argv[0]).stem.removeprefix("dagger-"), *HydraConfig.get().overrides.task],
    }
    write_json(path, manifest)
    return manifest


def log_to(path: Path) -> None:
    """Send all logging to a file; the terminal shows the progress only."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)


def _status(folder: Path, state: str, error: str = "") -> None:
    if int(os.environ.get("LOCAL_RANK", "0")) == 0:
        last_line = error.strip().splitlines()[-1] if error.strip() else ""
        time = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / "status.json", {"state": state, "error": last_line, "time": time})


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    return found.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
