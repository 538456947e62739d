"""What is in a run folder? Reading one, also while its run goes on; what cannot be read is said."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dagger_exp.errors import StoreError
from dagger_exp.store.files import read_json
from dagger_exp.types import SCHEMA_VERSION

Row = Mapping[str, float]
"""A round's metrics under their flat names, as `summary.json` has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as it stands on disk, or on a W&B server.

    Attributes:
        name: short, for tables; the folder's name.
        place: where it was read from, as text.
        state: running, finished, failed, interrupted, preempted or cancelled.
        error: the last line of what ended it, if anything did.
        config: every key with its value, nested, resolved.
        rows: of the rounds that are over, in order.
        folder: the run folder; None of a run that is not on this disk.
        choices: the option that was chosen of each config group, where that is known.
        commit, created, command: of its first start: the code's commit, when, and what was typed; or "".
    """

    name: str
    place: str
    state: str
    error: str
    config: Mapping[str, Any]
    rows: tuple[Row, ...]
    folder: Path | None = None
    choices: Mapping[str, str] = field(default_factory=dict)
    commit: str = ""
    created: str = ""
    command: str = ""


def load_run(folder: Path) -> Run:
    """Read a run folder.

    Raises:
        StoreError: it is no run folder, a file in it is damaged, or it is of another schema version.
    """
    if not (folder / "manifest.json").is_file():
        raise StoreError(f"{folder} is no run folder: it has no manifest.json.")
    manifest = read_json(folder / "manifest.json", "restore it from a copy, or leave this run out")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        version = manifest.get("schema_version")
        raise StoreError(
            f"{folder} is of schema version {version} and this code reads {SCHEMA_VERSION}: "
            "use the version of dagger_exp that wrote it, or leave this run out."
        )
    if not isinstance(manifest.get("config"), dict):
        raise StoreError(f"{folder} has a manifest.json without a config: leave this run out.")
    status = _optional(folder / "status.json")
    return Run(
        name=folder.name,
        place=str(folder),
        state=str(status.get("state", "unknown")),
        error=str(status.get("error", "")),
        config=manifest["config"],
        rows=tuple(_optional(folder / "summary.json").get("rounds", ())),
        folder=folder,
        choices=manifest.get("choices", {}),
        commit=manifest.get("commit", ""),
        created=manifest.get("created", ""),
        command=" ".join(manifest.get("command", ())),
    )


def load_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Return the runs that these paths are or hold, each once, and a sentence for each that cannot be read.

    A path is a run, a sweep, or a folder of either.
    """
    folders: dict[Path, Path] = {}
    for path in paths:
        found = [path] if (path / "manifest.json").is_file() else sorted(_below(path)) or [path]
        for folder in found:  # without any, reading the path itself says what is wrong
            folders.setdefault(folder.resolve(), folder)
    runs: list[Run] = []
    complaints: list[str] = []
    for folder in folders.values():
        try:
            runs.append(load_run(folder))
        except StoreError as error:
            complaints.append(str(error))
    return runs, complaints


def _below(path: Path) -> set[Path]:
    """Return the run folders at most two levels below: `outputs/` holds `sweeps/NAME/` and `runs/`."""
    depths = ("*", "*/*", "*/*/*")
    found = {m.parent for depth in depths for m in path.glob(f"{depth}/manifest.json")}
    return {folder for folder in found if folder.parent.name != "rounds"}


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, "delete it, or leave this run out") if path.exists() else {}
