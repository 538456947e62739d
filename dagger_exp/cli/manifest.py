"""Which run is this? `manifest.json`: written at the first start, read at every later one."""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import subprocess
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dagger_exp.analysis.settings import Settings, settings_of
from dagger_exp.cli.jobs import is_first_process
from dagger_exp.config.composing import load_checked, slug
from dagger_exp.errors import ConfigError
from dagger_exp.store.files import VISIBLE_S, read_json, write_json
from dagger_exp.types import SCHEMA_VERSION

OF_EPISODES = ("env.", "scaffold.", "student.", "seed")
"""Keys that say what episodes are of, when another command goes on with them."""
PACKAGES = ("dagger-exp", "torch", "transformers", "lightning", "hydra-core", "wandb", "pyarrow")


def open_manifest(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Return the run's manifest; its config stands in it resolved, for those who compare runs.

    Raises:
        StoreError: the manifest is damaged.
    """
    path = folder / "manifest.json"
    deadline = time.monotonic() + VISIBLE_S
    while not path.exists() and not is_first_process() and time.monotonic() < deadline:
        time.sleep(0.1)  # the first one writes it
    if path.exists():
        return read_manifest(folder)
    hydra = OmegaConf.select(OmegaConf.load(folder / ".hydra" / "hydra.yaml"), "hydra")
    sweep = cfg.sweep_name if hydra.mode == "MULTIRUN" else None
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id(folder, sweep),
        "sweep": sweep,
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
        "seed": cfg.seed,
        "choices": dict(hydra.runtime.choices),
        "command": [f"dagger-{hydra.job.config_name}", *hydra.overrides.task],
        "config_dir": next((str(path).removeprefix("file://") for path in hydra.searchpath or ()), None),
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    write_json(path, manifest)
    return manifest


def run_id(folder: Path, sweep: str | None) -> str:
    """Return the name of a run in its store and in W&B: of a job, by its config; else by its folder, never twice."""
    if sweep is not None:
        return f"{slug(sweep)[:50]}-{folder.name.rpartition('_')[2]}"
    return f"{slug(folder.name)[:50]}-{secrets.token_hex(3)}"


def config_hash(cfg: DictConfig, command: str) -> str:
    """Return 8 hex digits that two jobs share if they have the same outcome: same command, settings and seed."""
    settings = {key: value for key, value in _settings(cfg).items() if value is not None}  # a new key may come as null
    return hashlib.blake2b(json.dumps([command, settings], sort_keys=True).encode(), digest_size=4).hexdigest()


def check_same(folder: Path, cfg: DictConfig, command: str) -> None:
    """Look whether a run that a folder has already is the one that is asked for; a key of one only is of its age.

    Raises:
        ConfigError: it began with other choices, or by another command.
    """
    if not (folder / "manifest.json").exists():
        return
    began, is_same = (found := began_as(folder)), found == f"dagger-{command}"
    mend = f"go on with: {began} resume={folder}, or choose another folder"
    if not is_same and (began, command) != ("dagger-collect", "train"):  # what was collected may be trained on
        raise ConfigError(f"{folder} is a run of {began}: {mend}.")
    try:
        theirs, ours = _settings(load_checked(folder)), _settings(cfg)
    except ConfigError:  # what a kill has left of it, which is written again
        return
    keys = [key for key in ours if key in theirs and theirs[key] != ours[key]]
    others = [key for key in keys if is_same or key.startswith(OF_EPISODES)]
    if others:
        said = ", ".join(f"{key}={theirs[key]}, not {ours[key]}" for key in others[:3])
        raise ConfigError(f"{folder} is a run with {said}{' and more' * (len(others) > 3)}: {mend}.")


def _settings(cfg: DictConfig) -> Settings:
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    return settings_of(config)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run that has begun.

    Raises:
        StoreError: it is damaged.
    """
    return read_json(folder / "manifest.json", "restore it, or start a new run")


def typed_for(folder: Path) -> list[str]:
    """Return the overrides that began a run; a resume types none."""
    return list(map(str, OmegaConf.load(folder / ".hydra" / "overrides.yaml")))


def began_as(folder: Path) -> str:
    """Return the command that began a run; `dagger-train` where nothing tells."""
    path = folder / "manifest.json"
    return str(read_manifest(folder)["command"][0]) if path.exists() else "dagger-train"


def _commit() -> str:
    """Return the commit of this code; "" outside of a checkout, or where there is no git."""
    if shutil.which("git") is None:
        return ""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    return found.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
