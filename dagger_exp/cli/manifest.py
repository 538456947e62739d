"""Which run is this? `manifest.json`: written at the first start, read at every later one."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dagger_exp.errors import StoreError
from dagger_exp.store.files import write_json
from dagger_exp.types import SCHEMA_VERSION

PACKAGES = ("dagger-exp", "torch", "transformers", "lightning", "hydra-core", "wandb", "pyarrow")


def open_manifest(folder: Path, cfg: DictConfig) -> dict[str, Any]:
    """Return the run's manifest; its config stands in it resolved, for those who compare runs.

    Raises:
        StoreError: the manifest is damaged.
    """
    path = folder / "manifest.json"
    if path.exists():
        return read_manifest(folder)
    hydra = HydraConfig.get()
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "run_id": f"{slug(folder.name)[:50]}-{secrets.token_hex(3)}",
        "created": datetime.now().astimezone().isoformat(timespec="seconds"),
        "commit": _commit(),
        "versions": {name: _version(name) for name in PACKAGES},
        "seed": cfg.seed,
        "choices": dict(hydra.runtime.choices),
        "command": [f"dagger-{hydra.job.config_name}", *hydra.overrides.task],
        "config": OmegaConf.to_container(cfg, resolve=True),
    }
    write_json(path, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run that has begun.

    Raises:
        StoreError: it is damaged.
    """
    path = folder / "manifest.json"
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise StoreError(f"{path} is damaged; restore it, or start a new run.") from error


def began_as(folder: Path) -> str:
    """Return the command that began a run; `dagger-train` where nothing tells."""
    path = folder / "manifest.json"
    return str(read_manifest(folder)["command"][0]) if path.exists() else "dagger-train"


def slug(text: str) -> str:
    """Return a text of letters, digits, dots and dashes, for names of folders and W&B ids."""
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - a fixed command
    return found.stdout.strip()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
